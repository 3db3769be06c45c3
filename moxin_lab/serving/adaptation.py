"""The vertical fine-tune: a model adapted to the documentation of one product with LoRA.

    rows = [*text_rows(texts, tokenizer, 128), *question_rows(questions, tokenizer, 128)]
    adapted, log = adapt(folder, rows, settings, rank=8, seed=0, scratch=...)
    losses(adapted, tokenizer, texts, 256)                     # before and after, also general
    export(adapted, tokenizer, DIR)                            # merged: an ordinary folder

LoRA (Hu et al. 2021, arXiv 2106.09685) by peft: each linear layer W of the blocks stays as it is
and gets a product of two thin matrices added, W + (alpha / r) B A; only A and B are trained.

Guarantees: the base weights do not change; the loss of a step does not depend on micro-batches; an
export loads like any model folder and gives the adapted model's logits.
Out of scope: several adapters at once; serving an adapter that is not merged.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from moxin_lab.evaluation.bits_per_byte import (
    bits_per_byte,
    document_losses,
    encode_documents,
    prefix_token_id,
)
from moxin_lab.evaluation.scoring import Request, score
from moxin_lab.lab.artifacts import LabError
from moxin_lab.lab.progress import Progress
from moxin_lab.lab.sampling import beginning
from moxin_lab.model import plain_text
from moxin_lab.model.convert import best_device, without_bars
from moxin_lab.serving.answers import Grounding, Source
from moxin_lab.serving.questions import Question
from moxin_lab.training import schedules
from moxin_lab.training.fit import Order, fit
from moxin_lab.training.identity import digest
from moxin_lab.training.optimizer import decay_matrices

if TYPE_CHECKING:
    from moxin_lab.scales.sections import AdaptationSettings

PROMPT = "Question: {}\nAnswer:"
"""Around a question in training and when paragraphs are ranked; our choice."""
IGNORED = -100
READ_BYTES = 300
"""Of a paragraph, as far as the reader reads."""


class Row(NamedTuple):
    """Token ids, of which the first `given` carry no loss."""

    tokens: list[int]
    given: int


def load(folder: Path) -> tuple[Any, Any]:
    """A model folder's causal language model on the best device, and its tokenizer.

    Raises LabError for a folder that holds none.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise LabError(f"{folder} cannot be loaded as a language model: {error}") from error
    return model.to(best_device()).eval(), tokenizer


def text_rows(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> list[Row]:
    """The beginning of each text after the first token, all of it with loss."""
    start = prefix_token_id(tokenizer)
    encoded = encode_documents(tokenizer, [beginning(text, 8 * max_tokens) for text in texts])
    return [Row([start, *tokens[: max_tokens - 1]], 1) for tokens in encoded if tokens]


def question_rows(questions: Sequence[Question], tokenizer: Any, max_tokens: int) -> list[Row]:
    """Each question with its answer, which alone carries loss; longer ones are left out."""
    rows = []
    for question in questions:
        given = _prompt(question.text, tokenizer)
        answer = _tokens(f" {question.answer}", tokenizer)
        if len(given) + len(answer) < max_tokens:
            rows.append(Row([*given, *answer, tokenizer.eos_token_id], len(given)))
    return rows


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows, evenly spread. Raises LabError for fewer rows."""
    if len(rows) < count:
        raise LabError(f"applications: adaptation: rows: {count} are asked for, {len(rows)} there")
    return [rows[i * len(rows) // count] for i in range(count)]


class _Stream:
    """Padded steps of rows; `tokens` of a part is the number with loss in its whole step."""

    def __init__(self, rows: Sequence[Row], settings: "AdaptationSettings", seed: int) -> None:
        self._rows = rows
        self._order = Order(
            len(rows),
            examples_per_step=settings.examples_per_step,
            epochs=settings.epochs,
            seed=seed,
        )
        self.num_steps = self._order.num_steps
        self.examples_per_step = settings.examples_per_step

    def fingerprint(self) -> str:
        """Digest of rows and order."""
        tokens = np.concatenate([np.array([row.given, *row.tokens]) for row in self._rows])
        return digest(self._order.fingerprint(), tokens)

    def batch(self, step: int, *, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        """input_ids and labels, int64 [B, T], and tokens, int64 []."""
        rows = [self._rows[i] for i in self._order.part(step, part, parts)]
        width = max(len(row.tokens) for row in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.int64)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row.tokens)] = torch.tensor(row.tokens)
            labels[place, row.given : len(row.tokens)] = torch.tensor(row.tokens[row.given :])
        whole = [self._rows[i] for i in self._order.step(step)]
        count = sum(len(row.tokens) - row.given for row in whole)
        return {"input_ids": ids, "labels": labels, "tokens": torch.tensor(count)}


def _loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    # Right padding: a causal model's real tokens never see it.
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return {"loss": total / batch["tokens"]}


def adapt(
    folder: Path,
    rows: Sequence[Row],
    settings: "AdaptationSettings",
    *,
    rank: int,
    seed: int,
    scratch: Path,
    progress: Progress | None = None,
) -> tuple[Any, pd.DataFrame]:
    """The model of `folder` with adapters of `rank` trained on `rows`, and the log by step.

    scratch: a folder for resume points of this training alone.
    """
    from peft import LoraConfig, get_peft_model

    model, _ = load(folder)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.alpha_over_rank * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers for this under its old name; transformers knows both until its v6
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        adapted = get_peft_model(model, config)
    log = fit(
        adapted.train(),
        _Stream(rows, settings, seed),
        settings,
        _loss,
        optimizer=decay_matrices,
        rate=schedules.linear,
        resume_folder=scratch,
        text=f"LoRA, rank {rank}, {len(rows)} rows",
        progress=progress,
    )
    return adapted.to(best_device()).eval(), log


def trained_share(adapted: Any) -> tuple[int, int]:
    """Parameters that were trained, and all of the base model."""
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in adapted.parameters()) - trained


def losses(
    model: Any, tokenizer: Any, texts: Sequence[str], context_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of each text, float64 [N] and int64 [N]."""
    nats = document_losses(
        model,
        encode_documents(tokenizer, texts),
        context=context_tokens,
        bos_id=prefix_token_id(tokenizer),
        device=next(model.parameters()).device,
    )
    return np.asarray(nats), np.array([len(text.encode()) for text in texts])


def bits(measured: tuple[np.ndarray, np.ndarray]) -> float:
    """Bits per byte of what `losses` returned."""
    return bits_per_byte(*measured)


def reader(model: Any, tokenizer: Any, *, batch_tokens: int = 8_192) -> Callable[..., list[Source]]:
    """A chooser for `knowledge.read_answers`: the paragraph that the question makes most likely.

    That is the largest (log p(paragraph | question) - log p(paragraph)) / tokens: how much the
    question tells the model about the paragraph, so that common phrases gain nothing.
    """
    start = prefix_token_id(tokenizer)
    device = next(model.parameters()).device

    def choose(groundings: Sequence[Grounding]) -> list[Source]:
        requests = []
        for one in groundings:
            given = _prompt(one.question, tokenizer)
            for source in one.sources:
                tokens = _tokens(f" {beginning(source.text, READ_BYTES)}", tokenizer)
                requests.append(Request([*given, *tokens], len(tokens)))
                requests.append(Request([start, *tokens], len(tokens)))
        scored = score(model, requests, batch_tokens=batch_tokens, device=device)
        gains = iter(
            (alone.nats - asked.nats) / request.num_scored
            for asked, alone, request in zip(scored[::2], scored[1::2], requests[::2], strict=True)
        )
        chosen = []
        for one in groundings:
            values = [next(gains) for _ in one.sources]
            chosen.append(one.sources[int(np.argmax(values))])
        return chosen

    return choose


def closed_book(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    max_new_tokens: int,
    *,
    batch: int = 64,
) -> list[str]:
    """Greedy answers without any paragraph, one line each. batch: questions answered at once."""
    end = tokenizer.eos_token_id
    device = next(model.parameters()).device
    texts = []
    for start in range(0, len(questions), batch):
        prompts = [_prompt(one.text, tokenizer) for one in questions[start : start + batch]]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), end)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(prompts):  # on the left: each prompt ends where it goes on
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        with torch.inference_mode():
            said = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=end,
                eos_token_id=end,
            )
        new = tokenizer.batch_decode(said[:, width:], skip_special_tokens=True)
        texts += [text.strip().partition("\n")[0] for text in new]
    return texts


def export(adapted: Any, tokenizer: Any, folder: Path) -> None:
    """The adapters added into the weights, as a folder that `from_pretrained` loads."""
    merged = adapted.merge_and_unload()
    with without_bars():
        merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _prompt(question: str, tokenizer: Any) -> list[int]:
    return [prefix_token_id(tokenizer), *_tokens(PROMPT.format(question), tokenizer)]


def _tokens(text: str, tokenizer: Any) -> list[int]:
    return plain_text.encode(tokenizer, text)
