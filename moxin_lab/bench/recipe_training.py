"""One training of `bench recipe`, and its scores on held-out text and on a benchmark's questions.

The passes are those of stage 04 (`trainer.token_loss`, compiled blocks, one CUDA graph a step),
without Lightning, log files and resume points, so that an arm of seconds does not wait for them and
its optimizer and loss can be others.

Guarantees: with AdamW and without smoothing the weights are those of `trainer.fit`, bit for bit on
the CPU (tests/bench/test_recipe.py); a step whose gradient is not finite is left out, and three in
a row end the training with ArithmeticError, as there; nothing waits for the device but a few steps
behind it.
Dropout runs as a graph too: PyTorch advances its generator with each replay, which is checked on
the first batch.
Out of scope: several devices, micro-batches, which experiments there are (`recipe_arms.py`).
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, SequentialSampler

from moxin_lab.bench.pretraining import between, mark
from moxin_lab.bench.recipe_arms import Training
from moxin_lab.evaluation.bits_per_byte import (
    bits_per_byte_by_group,
    document_losses,
    encode_documents,
    prefix_token_id,
)
from moxin_lab.evaluation.scoring import Request, score
from moxin_lab.model import plain_text
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.initialisation import initialised
from moxin_lab.pretraining import trainer
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.pools import Tokens
from moxin_lab.scales.sections import PretrainingSettings
from moxin_lab.training import compiled as compiling
from moxin_lab.training.fit import autocast
from moxin_lab.training.loss import linear_cross_entropy
from moxin_lab.training.muon import muon_with_adamw
from moxin_lab.training.resume import without_cudnn_attention
from moxin_lab.training.schedules import pretraining_learning_rate
from moxin_lab.training.step_log import LIMIT

BEHIND = 8
"""Steps that the processor may be ahead of the device."""
WARM = 3
"""First steps that the time of a step leaves out: blocks compile, a graph is captured."""


# ---- training


class Steps(Dataset):
    """The batches of a stream as tensors, one for each step."""

    def __init__(self, stream: TrainingStream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return self._stream.num_steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(value) for name, value in self._stream.batch(step).items()}


class Log(NamedTuple):
    """Of a training: mean loss in nats per target of each step (what was minimised, so smoothed
    where there is smoothing), gradient norms, seconds in all and of a typical step.
    """

    loss: list[float]
    gradient_norm: list[float]
    seconds: float
    step_seconds: float


def new_model(training: Training, config: MoxinConfig) -> MoxinForCausalLM:
    """The untrained model: `custom` divides the deviation of what writes to the stream by depth,
    `default` does not.
    """
    scheme = "plain" if training.initialisation == "default" else "depth-scaled"
    return initialised(config, scheme, training.seed_weights)


def settings_of(training: Training, settings: PretrainingSettings) -> PretrainingSettings:
    """The scale's section with this training's rate, warm-up and step."""
    from moxin_lab.bench.recipe_arms import WARMUP_SHARE

    return settings.model_copy(
        update={
            "learning_rate": training.learning_rate,
            "warmup_steps": round(training.steps * WARMUP_SHARE),
            "tokens_per_step": training.tokens_per_step,
            "micro_batch_tokens": training.tokens_per_step,
        }
    )


def optimizers_of(
    name: str, model: MoxinForCausalLM, settings: PretrainingSettings
) -> list[torch.optim.Optimizer]:
    """Raises ValueError for an unknown name."""
    if name == "adamw":
        return [trainer.adamw(model, settings)]
    if name == "muon":
        return muon_with_adamw(model, settings)
    raise ValueError(f"unknown optimizer {name!r}: there are adamw and muon")


@functools.cache
def loss_function(label_smoothing: float, compiled: bool) -> Callable[..., torch.Tensor]:
    """The loss of `trainer.token_loss`. One object for each setting, so that it compiles once."""
    if not label_smoothing:
        loss: Callable[..., torch.Tensor] = linear_cross_entropy
    else:

        def loss(*arguments: Any, **options: Any) -> torch.Tensor:
            return linear_cross_entropy(*arguments, label_smoothing=label_smoothing, **options)

    return torch.compile(loss, dynamic=False) if compiled else loss


@contextmanager
def many_shapes() -> Iterator[None]:
    """Compile as many shapes as a ladder has. PyTorch's own limit of 8 for a function would run the
    others uncompiled without a word; beyond this one it raises an error.
    """
    import torch._dynamo.config as config

    with config.patch(
        recompile_limit=64, accumulated_recompile_limit=4096, fail_on_recompile_limit_hit=True
    ):
        yield


def train(
    model: MoxinForCausalLM,
    stream: TrainingStream,
    training: Training,
    settings: PretrainingSettings,
    say: Callable[[str], None] = print,
) -> Log:
    """Trains `model` in place, on the device where it is. settings: of `settings_of`.

    Raises ValueError for inputs that do not fit together, ArithmeticError for gradients of several
    steps in a row that are not finite.
    """
    trainer.check_inputs(model, stream, 1)
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    loss_of = loss_function(training.label_smoothing, on_gpu)
    optimizers = optimizers_of(training.optimizer, model, settings)
    # In the optimizers' order, in which Lightning adds up the norm for clipping.
    parameters = [
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]

    def sums(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with autocast(settings.precision, device):
            total = trainer.token_loss(model, batch, loss_of)
            loss = total / batch["num_targets"]
        return {"loss": loss, "nats": total.detach()}

    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: pretraining_learning_rate(
                step,
                stream.num_steps,
                peak=1.0,
                warmup_steps=settings.warmup_steps,
                final_ratio=settings.final_learning_rate_ratio,
            ),
        )
        for optimizer in optimizers
    ]
    graphed = compiling.GraphedPass(sums, parameters) if on_gpu else None
    began = time.monotonic()
    marks: list[Any] = []
    numbers: list[torch.Tensor] = []
    read = 0
    rows: list[list[float]] = []
    steps = Steps(stream)
    torch.manual_seed(training.seed_weights)  # of dropout
    model.train()
    with compiling.compiled_blocks(model.model.layers, on=on_gpu), without_cudnn_attention():
        for cpu_batch in compiling.loader(steps, SequentialSampler(steps), device):
            batch = {name: value.to(device, non_blocking=True) for name, value in cpu_batch.items()}
            if graphed is None:
                found = sums(batch)
                found["loss"].backward()
            else:
                found = graphed.load(batch)
                if training.dropout and not numbers:
                    _check_masks_differ(graphed, found)
                graphed.replay()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clip_norm)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.found_inf = (~torch.isfinite(norm)).float()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
            mean = found["nats"].detach() / batch["num_targets"]
            numbers.append(torch.stack([mean.float(), norm.detach().float()]))
            marks.append(mark(on_gpu))
            if on_gpu and len(marks) > BEHIND:
                marks[-1 - BEHIND].synchronize()
            if len(numbers) - read >= 50 or len(numbers) == len(steps):
                rows += torch.stack(numbers[read:]).tolist()
                read = len(numbers)
                _check(rows)
                say(f"    step {read} of {len(steps)}, loss {rows[-1][0]:.3f}")
    seconds = time.monotonic() - began
    typical = sorted(between(marks, on_gpu)[WARM:] or between(marks, on_gpu))
    model.eval()
    return Log(
        [loss for loss, _ in rows],
        [norm for _, norm in rows],
        seconds,
        typical[len(typical) // 2] if typical else seconds,
    )


def _check(rows: list[list[float]]) -> None:
    """Raises ArithmeticError where leaving steps out does not help."""
    in_a_row = 0
    for step, (loss, norm) in enumerate(rows):
        in_a_row = 0 if math.isfinite(norm) else in_a_row + 1
        if in_a_row >= LIMIT or (math.isfinite(norm) and not math.isfinite(loss)):
            raise ArithmeticError(
                f"the training diverged at step {step}: loss {loss}, gradient norm {norm}"
            )


def _check_masks_differ(graphed: compiling.GraphedPass, found: Mapping[str, torch.Tensor]) -> None:
    """Raises RuntimeError if two replays on one batch give one loss: the graph would drop the same
    numbers in every step.
    """
    losses = []
    for _ in range(2):
        graphed.replay()
        losses.append(float(found["nats"]))
    if losses[0] == losses[1]:
        raise RuntimeError(
            f"two replays of a step with dropout gave the same loss, {losses[0]}: this PyTorch "
            "does not advance its generator in a graph; leave the dropout arm out (--without "
            "dropout)"
        )


# ---- scores


class Questions(NamedTuple):
    """Tokens of questions and answers with control tokens where training has them, and the bytes of
    the answers."""

    requests: list[Request]
    num_bytes: list[int]


class Heldout(NamedTuple):
    """What trainings are scored on. texts: columns id, page, language, half, text, num_bytes.
    tokens: of each text. questions: by name of the group.
    """

    texts: pd.DataFrame
    tokens: list[list[int]]
    questions: dict[str, Questions]
    bos: int


def half_of(page: str) -> str:
    """`validation` or `test`: a page and its translations are in one half, whatever the seed."""
    return ("validation", "test")[hashlib.sha256(f"half of {page}".encode()).digest()[0] % 2]


def heldout_of(texts: pd.DataFrame, questions: dict[str, Questions], tokenizer: Any) -> Heldout:
    """texts: columns id, page, language, text, num_bytes. Raises ValueError for a language that has
    no text in one of the halves.
    """
    texts = texts.assign(half=[half_of(page) for page in texts["page"]])
    for language, part in texts.groupby("language"):
        missing = {"validation", "test"} - set(part["half"])
        if missing:
            raise ValueError(
                f"{len(part)} held-out documents in {language}, none of them in the "
                f"{' and '.join(sorted(missing))} half: score more bytes (--heldout-bytes)"
            )
    tokens = encode_documents(tokenizer, texts["text"].tolist())
    return Heldout(texts, tokens, questions, prefix_token_id(tokenizer))


@torch.no_grad()
def scores_of(
    model: MoxinForCausalLM, heldout: Heldout, *, context: int, precision: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures of the test half by name, with `validation` for the mean of the other one; and a row
    for each half and language: bits_per_byte, low, high (over documents), documents, bytes.
    """
    device = next(model.parameters()).device
    batch_tokens = 16384 if device.type == "cuda" else 4096
    with autocast(precision, device):
        nats = document_losses(
            model,
            heldout.tokens,
            context=context,
            bos_id=heldout.bos,
            batch_tokens=batch_tokens,
            device=device,
        )
    counts = np.array([len(ids) for ids in heldout.tokens])
    measures: dict[str, float] = {}
    rows = []
    for half in ("validation", "test"):
        chosen = (heldout.texts["half"] == half).to_numpy()
        part = heldout.texts[chosen]
        table = bits_per_byte_by_group(nats[chosen], part["num_bytes"], part["language"].tolist())
        table = table.rename(columns={"group": "language"})
        rows += [{"half": half, **row} for row in table.to_dict("records")]
        bits = table.set_index("language")["bits_per_byte"]
        if half == "validation":
            measures["validation"] = float(bits.mean())
            continue
        per_token = [
            nats[chosen][own].sum() / counts[chosen][own].sum()
            for own in ((part["language"] == language).to_numpy() for language in bits.index)
        ]
        measures |= {
            "mean": float(bits.mean()),
            "text": float(bits.drop("code", errors="ignore").mean()),
            **{str(language): float(value) for language, value in bits.items()},
            "nats_per_token": float(np.mean(per_token)),
        }
    for name, questions in heldout.questions.items():
        with autocast(precision, device):
            answers = score(
                model,
                questions.requests,
                batch_tokens=batch_tokens,
                pad_id=heldout.bos,
                device=device,
            )
        total = sum(answer.nats for answer in answers) / math.log(2)
        measures[f"{name}_answers"] = total / sum(questions.num_bytes)
        measures[f"{name}_right"] = float(np.mean([answer.is_greedy for answer in answers]))
    return measures, rows


# ---- a benchmark made of data_cards/instructions

BENCHMARK_TASKS = (
    "add",
    "contains",
    "count_letter",
    "first_item",
    "first_letter",
    "larger",
    "repeat",
    "sort_digits",
    "to_binary",
)
NEIGHBOUR_TASKS = (
    "subtract",
    "multiply",
    "parity",
    "count_items",
    "last_item",
    "last_letter",
    "smaller",
    "reverse_word",
    "sort_words",
    "next_number",
    "weekday",
)
"""Generated tasks of the card, half of them trained on as a benchmark's training set; these are
near them and kept out."""


def question_pairs(card: pd.DataFrame, tasks: Sequence[str]) -> list[tuple[str, str, str]]:
    """(id, question, answer) of the rows of these tasks with one question and one answer."""
    pairs = []
    for row in card[card["task"].isin(tasks)].itertuples():
        if len(row.messages) == 2:
            question, answer = (message["content"] for message in row.messages)
            pairs.append((str(row.id), f"{question}\n", answer))
    return pairs


def questions_of(pairs: Sequence[tuple[str, str, str]], tokenizer: Any) -> Questions:
    """For scoring: the answer's tokens after the question's, each tokenised alone."""
    asked = plain_text.encode(tokenizer, [question for _, question, _ in pairs])
    answered = plain_text.encode(tokenizer, [answer for _, _, answer in pairs])
    bos = prefix_token_id(tokenizer)
    return Questions(
        [
            Request([bos, *question, *answer], len(answer))
            for question, answer in zip(asked, answered, strict=True)
        ],
        [len(answer.encode()) for _, _, answer in pairs],
    )


def pool_of(pairs: Sequence[tuple[str, str, str]], tokenizer: Any) -> Tokens:
    """The same pairs as documents to train on, with the same tokens."""
    questions = questions_of(pairs, tokenizer)
    eos = tokenizer.eos_token_id
    documents = [np.array([*request.tokens, eos], dtype=np.int32) for request in questions.requests]
    lengths = [len(document) for document in documents]
    return Tokens(
        np.concatenate(documents),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([len((question + answer).encode()) for _, question, answer in pairs]),
        [name for name, _, _ in pairs],
        len(tokenizer),
    )
