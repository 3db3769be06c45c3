"""Our model and the n-gram baselines as `LM` objects of lm-evaluation-harness, and offline tasks.

    lm = MoxinLM(model, tokenizer, max_length=512)
    results = run_tasks(lm, ["moxin_cloze_en"], data_folder)      # lm-eval's own result structure
    write_results(results, folder, "trained")                     # lm-eval's own JSON files

In rolling requests, `HFLM` with a tokenizer that adds bos puts bos before the text twice, and so
scores bos itself. Here bos is context only, as with `HFLM(add_bos_token=False)`. Importing this
module loads lm-eval, which takes a few seconds.

Guarantees: `loglikelihood`, `loglikelihood_rolling` and greedy `generate_until` equal those of
lm-eval's `HFLM` on the same weights (tested at 1e-4); every text is preceded by exactly one bos;
requests longer than `max_length` lose tokens on the left and are counted in `truncated_requests`;
nothing is fetched from a network; default tasks are not indexed, which would take seconds.
Out of scope: sampling; chat templates.
"""

import contextlib
import io
import json
import logging
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window

from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.evaluation.scoring import Request, Score, score
from moxin_lab.model.generate import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from moxin_lab.model.decoder import MoxinForCausalLM

TASKS_FOLDER = Path(__file__).parent / "tasks"
DEFAULT_NEW_TOKENS = 256
"""Longest generation where a task does not state one; the default of `HFLM`."""

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's token request: the texts (or None), tokens of the context, tokens to score."""


class TokenLM(TemplateLM):
    """Base of our models under the harness: turns texts into token requests as `HFLM` does.

    max_length: most input tokens of a request; None if there is no limit.
    Raises ValueError for a tokenizer without a bos token.
    """

    progress: Callable[[int, int], None] | None = None
    """Called with (requests done, requests in all) of one call by the harness."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_length: int | None) -> None:
        super().__init__()
        if tokenizer.bos_token_id is None:
            raise ValueError(
                "the tokenizer names no bos token; the models are trained with one before each "
                "document"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncated_requests = 0

    @abstractmethod
    def score_tokens(self, requests: list[Request]) -> list[Score]:
        """The scores of sequences that fit `max_length`, in their order."""

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        return type(self.tokenizer).__name__

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a string, after exactly one bos unless `add_special_tokens` is False.

        A string that begins with bos does not get a second one.
        """
        tokens = self.tokenizer.encode(string, add_special_tokens=False)
        if add_special_tokens is not False and tokens[:1] != [self.prefix_token_id]:
            tokens = [self.prefix_token_id, *tokens]
        return tokens

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
    """

    def __init__(
        self,
        model: "MoxinForCausalLM",
        tokenizer: "PreTrainedTokenizerFast",
        *,
        max_length: int,
        batch_tokens: int = 4096,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.max_length: int = max_length
        self.model = model
        self.batch_tokens = batch_tokens
        self._device = torch.device(device)

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

        Raises ValueError for a task that samples, or whose completions leave no room for a prompt.
        """
        groups: dict[str, list[int]] = {}  # indices of the requests with the same options
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for options, group in groups.items():
            settings = normalize_gen_kwargs(json.loads(options), DEFAULT_NEW_TOKENS)
            if settings.get("do_sample"):
                raise ValueError(
                    "generate_until is greedy here; to sample, use lm-eval's hf model on the "
                    "exported weights"
                )
            stops = handle_stop_sequences(
                settings["until"], eos=self.tokenizer.decode([self.eot_token_id])
            )
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

        Ends early once every row has produced a stop sequence or the end token.
        """
        width = max(map(len, prompts))
        # Padded on the left: int64 [B, width], and a mask that is 1 on the tokens of the prompts.
        padded = torch.tensor(
            [[self.eot_token_id] * (width - len(p)) + p for p in prompts], device=self._device
        )
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device
        )
        rows: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for step in stream(self.model, padded, attention_mask=mask, max_new_tokens=new_tokens):
            for i, token in enumerate(step.tolist()):
                if not ended[i]:
                    rows[i].append(token)
                    text = self.tokenizer.decode(rows[i], skip_special_tokens=True)
                    ended[i] = token == self.eot_token_id or any(
                        stop and stop in text for stop in stops
                    )
            if all(ended):
                break
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes about the model into the `config` section of the results."""
        parameters = list(self.model.parameters())
        return {
            "model_num_parameters": sum(p.numel() for p in parameters),
            "model_dtype": str(parameters[0].dtype),
        }


class NGramLM(TokenLM):
    """An n-gram baseline under the harness."""

    def __init__(self, ngram: NGram, tokenizer: "PreTrainedTokenizerFast") -> None:
        super().__init__(tokenizer, max_length=None)
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


def run_tasks(
    lm: TokenLM, tasks: Sequence[str], data_folder: Path, *, bootstrap_iters: int = 1
) -> dict[str, Any]:
    """Runs tasks of `moxin_lab/evaluation/tasks` on `<data_folder>/<task>.jsonl`.

    Returns lm-eval's result structure, samples included. It names no path, date or machine, so that
    the same inputs give the same bytes; `stage.json` records those. Standard errors of means are
    lm-eval's closed form, which needs `bootstrap_iters` above 0 all the same.
    Raises FileNotFoundError for a task without data.
    """
    files = {name: data_folder / f"{name}.jsonl" for name in tasks}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"no data for {', '.join(missing)}: expected <task>.jsonl in {data_folder}"
        )
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    with tempfile.TemporaryDirectory() as cache, quiet():
        sources = {
            name: {"data_files": {"test": str(path)}, "cache_dir": cache}
            for name, path in files.items()
        }
        specs = [
            {**task_config(name), "dataset_kwargs": source} for name, source in sources.items()
        ]
        results = simple_evaluate(
            model=lm, tasks=specs, task_manager=manager, bootstrap_iters=bootstrap_iters
        )
    for name in tasks:
        results["configs"][name]["dataset_kwargs"] = task_config(name)["dataset_kwargs"]
    for key in ("date", "pretty_env_info", "git_hash", "upper_git_hash"):
        results.pop(key, None)
    return results


def task_config(name: str) -> dict[str, Any]:
    """The YAML of a task, merged with the file that it includes.

    lm-eval applies overrides only to a configuration that is passed in full.
    """
    config = yaml.safe_load((TASKS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((TASKS_FOLDER / config.pop("include")).read_text(encoding="utf-8"))
    return {**base, **config}


def write_results(results: dict[str, Any], folder: Path, model_name: str) -> None:
    """Writes `results_<model>.json` and `samples_<task>_<model>.jsonl`.

    They are the files that lm-eval writes with `--output_path`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = {key: value for key, value in results.items() if key != "samples"}
    text = json.dumps(summary, indent=2, ensure_ascii=False, default=handle_non_serializable)
    (folder / f"results_{model_name}.json").write_text(text + "\n", encoding="utf-8")
    for task, samples in results["samples"].items():
        lines = [
            json.dumps(sample, ensure_ascii=False, default=handle_non_serializable)
            for sample in samples
        ]
        (folder / f"samples_{task}_{model_name}.jsonl").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the harness's progress bars and informational messages; warnings and errors show."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars_were_off = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        # tqdm writes to stderr; log handlers keep the stream that they were created with.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars_were_off:
            datasets.enable_progress_bars()
