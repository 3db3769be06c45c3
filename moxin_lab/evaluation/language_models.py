"""Our model and the n-gram baselines as `LM` objects of lm-evaluation-harness.

    lm = MoxinLM(model, tokenizer, max_length=512)

Two differences from lm-eval's own `HFLM`. In rolling requests, `HFLM` with a tokenizer that adds
bos puts bos before the text twice, and so scores bos itself; here bos is context only, as with
`HFLM(add_bos_token=False)`. And `HFLM` reads `</s>` in a text as a control token; here it is text,
as in training. Importing this module loads lm-eval, which takes a few seconds.

Guarantees: `loglikelihood`, `loglikelihood_rolling` and greedy `generate_until` equal those of
lm-eval's `HFLM` with one request per batch on the same weights (tested at 1e-4); a text is preceded
by what the tokenizer adds, bos or nothing; generation options that are not followed are refused, a
task's and those of the model's folder; requests longer than `max_length` lose tokens on the left
and are counted in `truncated_requests`.
Out of scope: sampling; chat templates; running tasks (`harness.py`).
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.models.utils_hf import MultiTokenEOSCriteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moxin_lab.evaluation.bits_per_byte import prefix_token_id
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.evaluation.scoring import Request, Score, score
from moxin_lab.model import generation_config, plain_text
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.generate import end_ids, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_NEW_TOKENS = 256
"""Longest generation where a task does not state one; the default of `HFLM`."""

FOLLOWED_OPTIONS = ("until", "max_gen_toks")
"""Generation options of lm-eval; the others are transformers'."""

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's token request: the texts (or None), tokens of the context, tokens to score."""


class TokenLM(TemplateLM):
    """Base of our models under the harness: turns texts into token requests as `HFLM` does.

    max_length: most input tokens of a request; None if there is no limit.
    Raises ValueError for a tokenizer that names neither bos nor eos.
    """

    progress: Callable[[int, int], None] | None = None
    """Called with (requests done, requests in all) of one call by the harness."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_length: int | None) -> None:
        super().__init__()
        prefix_token_id(tokenizer)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncated_requests = 0

    @abstractmethod
    def score_tokens(self, requests: list[Request]) -> list[Score]:
        """The scores of sequences that fit `max_length`, in their order."""

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is given: bos, or eos where the tokenizer has no bos."""
        return prefix_token_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        return type(self.tokenizer).__name__

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a string, with the special tokens that the tokenizer itself adds unless
        `add_special_tokens` is False. A control token that the string spells is text.
        """
        return plain_text.encode(
            self.tokenizer, string, add_special_tokens=add_special_tokens is not False
        )

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        prepared = []
        for _, context, continuation in requests:
            tokens = context + continuation
            if self.max_length is not None and len(tokens) > self.max_length + 1:
                if len(continuation) > self.max_length:
                    raise ValueError(
                        f"a continuation of {len(continuation)} tokens does not fit max_length "
                        f"{self.max_length}"
                    )
                self.truncated_requests += 1
                tokens = tokens[-(self.max_length + 1) :]
            prepared.append(Request(tokens, len(continuation)))
        return [(-result.nats, result.is_greedy) for result in self.score_tokens(prepared)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each text in nats, over lm-eval's disjoint windows of `max_length`."""
        request_of: list[int] = []
        token_requests: list[TokenRequest] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            length = self.max_length or max(1, len(tokens))
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, length, context_len=1
            ):
                request_of.append(index)
                token_requests.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for index, (loglikelihood, _) in zip(
            request_of, self._loglikelihood_tokens(token_requests), strict=True
        ):
            totals[index] += loglikelihood
        return totals


class MoxinLM(TokenLM):
    """Our decoder under the harness.

    max_length: most input tokens of a row.
    batch_tokens: most tokens in one forward pass, padding included.
    folder: where the model comes from (default: where the tokenizer does). A generation ends at
    every end token that the folder's generation_config.json, the model's configuration or the
    tokenizer names; another option there that changes a greedy text is refused.
    Raises LabError for a tokenizer with tokens beyond the model's vocabulary.
    """

    def __init__(
        self,
        model: "MoxinForCausalLM",
        tokenizer: "PreTrainedTokenizerFast",
        *,
        max_length: int,
        batch_tokens: int = 4096,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.max_length: int = max_length
        self.model = model
        self.batch_tokens = batch_tokens
        self._device = torch.device(device)
        if folder is None and tokenizer.name_or_path:
            folder = Path(tokenizer.name_or_path)
        plain_text.check_vocabulary(tokenizer, model.config.vocab_size, folder or "the tokenizer")
        self.folder = folder
        self.end_ids = end_ids(model, tokenizer, folder)

    def score_tokens(self, requests: list[Request]) -> list[Score]:
        return score(
            self.model,
            requests,
            batch_tokens=self.batch_tokens,
            device=self._device,
            progress=self.progress,
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuation of each request up to the first stop sequence, in batches.

        Raises ValueError for a task that samples, names an option that is not followed, or whose
        completions leave no room for a prompt.
        """
        groups: dict[str, list[int]] = {}  # indices of the requests with the same options
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for options, group in groups.items():
            settings = normalize_gen_kwargs(json.loads(options), DEFAULT_NEW_TOKENS)
            _check_generation_options(settings, self.folder)
            stops = handle_stop_sequences(settings["until"], eos=self.tokenizer.eos_token)
            new_tokens = settings["max_gen_toks"]
            prompts = {index: self._prompt(requests[index].args[0], new_tokens) for index in group}
            waiting = sorted(group, key=lambda index: -len(prompts[index]))
            while waiting:
                rows = max(1, self.batch_tokens // (len(prompts[waiting[0]]) + new_tokens))
                batch, waiting = waiting[:rows], waiting[rows:]
                completions = self._complete([prompts[i] for i in batch], stops, new_tokens)
                for index, text in zip(batch, completions, strict=True):
                    texts[index] = postprocess_generated_text(text, stops, None)
        return texts

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f"{new_tokens} new tokens leave no room for a context in max_length "
                f"{self.max_length}"
            )
        tokens = self.tok_encode(context)
        self.truncated_requests += len(tokens) > room
        return tokens[-room:]

    def _complete(self, prompts: list[list[int]], stops: list[str], new_tokens: int) -> list[str]:
        """Greedy completions of a batch, with the rolling cache.

        A row ends where lm-eval's own criterion finds a stop sequence in its latest tokens, special
        tokens spelled out, or at an end token.
        """
        width = max(map(len, prompts))
        # Padded on the left: int64 [B, width], and a mask that is 1 on the tokens of the prompts.
        padded = torch.tensor(
            [[self.prefix_token_id] * (width - len(p)) + p for p in prompts], device=self._device
        )
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device
        )
        criteria = [MultiTokenEOSCriteria(stop, self.tokenizer, 0, len(prompts)) for stop in stops]
        lengths = [0] * len(prompts)  # tokens of each row until it ended; 0 while it goes on
        written = torch.empty(len(prompts), 0, dtype=torch.long)
        for step in stream(self.model, padded, attention_mask=mask, max_new_tokens=new_tokens):
            written = torch.cat((written, step.reshape(-1, 1).cpu()), dim=1)  # [B, so far]
            for criterion in criteria:
                criterion(written, None)
            for row, token in enumerate(written[:, -1].tolist()):
                stopped = any(criterion.done_tracker[row] for criterion in criteria)
                if not lengths[row] and (stopped or token in self.end_ids):
                    lengths[row] = written.shape[1]
            if all(lengths):
                break
        return [
            self.tokenizer.decode(ids[: length or None], skip_special_tokens=True)
            for ids, length in zip(written.tolist(), lengths, strict=True)
        ]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes about the model into the `config` section of the results."""
        parameters = list(self.model.parameters())
        return {
            "model_num_parameters": sum(p.numel() for p in parameters),
            "model_dtype": str(parameters[0].dtype),
        }


def _check_generation_options(settings: Mapping[str, Any], folder: Path | None) -> None:
    """Raises ValueError for options, normalised by lm-eval, that are not followed. As in
    transformers a task's option comes before that of the model's folder.
    """
    if settings.get("do_sample"):
        raise ValueError(
            "generate_until is greedy here; to sample, use lm-eval's hf model on the exported "
            "weights"
        )
    asked = {name: value for name, value in settings.items() if name not in FOLLOWED_OPTIONS}
    unknown = generation_config.unfollowed(asked)
    if asked.get("max_length") is not None:  # of prompt and answer; harmless in a folder
        unknown.append(f"max_length={asked['max_length']}")
    if unknown:
        raise ValueError(
            f"generate_until does not follow {', '.join(unknown)}: remove it from the task's "
            "generation_kwargs, or use lm-eval's hf model on the exported weights"
        )
    of_folder = generation_config.read(folder)
    if unknown := generation_config.unfollowed({**of_folder, **asked}):
        raise ValueError(
            f"generate_until does not follow {', '.join(unknown)} of "
            f"{folder}/generation_config.json: remove it there, set it in the task's "
            "generation_kwargs, or use lm-eval's hf model"
        )


class NGramLM(TokenLM):
    """An n-gram baseline under the harness."""

    def __init__(self, ngram: NGram, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Raises ValueError for an n-gram that was fitted behind another token than a text of this
        tokenizer has before it.
        """
        super().__init__(tokenizer, max_length=None)
        if ngram.bos_id != self.prefix_token_id:
            raise ValueError(
                f"the n-gram was fitted with bos id {ngram.bos_id}, and the tokenizer puts "
                f"{self.prefix_token_id} before a text: fit it again"
            )
        self.ngram = ngram

    def score_tokens(self, requests: list[Request]) -> list[Score]:
        """Scores of sequences; `is_greedy` is always False, since no task here reads it."""
        # The n-gram adds bos itself.
        total = self.ngram.document_losses([self._without_bos(r.tokens) for r in requests])
        context = self.ngram.document_losses(
            [self._without_bos(r.tokens[: len(r.tokens) - r.num_scored]) for r in requests]
        )
        return [Score(float(a - b), False) for a, b in zip(total, context, strict=True)]

    def _without_bos(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens[1:] if tokens and tokens[0] == self.prefix_token_id else tokens

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("the n-gram baseline scores text; it does not generate any")
