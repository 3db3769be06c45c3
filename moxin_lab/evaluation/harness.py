"""Our model, and the n-gram baselines, as `LM` objects of lm-evaluation-harness, and a call that
runs its tasks offline.

    lm = MoxinLM(model, tokenizer, max_length=512)
    results = run_tasks(lm, ["moxin_cloze_en"], data_folder)      # lm-eval's own result structure
    write_results(results, folder, "trained")                     # lm-eval's own JSON files

Guarantees: `loglikelihood`, `loglikelihood_rolling` and greedy `generate_until` equal lm-eval's
`HFLM` on the same weights (tested at 1e-4); exactly one bos stands in front of every text; requests
longer than `max_length` lose tokens on the left and are counted in `truncated_requests`; nothing is
fetched from a network; default tasks are not indexed (that costs seconds).
Does not: sample; apply a chat template.

`HFLM` with a tokenizer that adds bos scores bos itself in rolling requests (bos stands twice in
front of the text); here bos is context only, as with `HFLM(add_bos_token=False)`. Importing this
module loads lm-eval, which takes a few seconds.
"""

import contextlib
import io
import json
import logging
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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

TASKS_FOLDER = Path(__file__).parent / "tasks"
DEFAULT_NEW_TOKENS = 256  # as HFLM

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


class TokenLM(TemplateLM):
    """What all our models share: texts become token requests in the way of `HFLM`, bos in front."""

    progress: Callable[[int, int], None] | None = None
    """Called with requests done and requests in all, within each call of the harness."""

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        super().__init__()
        if tokenizer.bos_token_id is None:
            raise ValueError(
                "the tokenizer names no bos token; the models are trained with one in front of each document"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncated_requests = 0

    @abstractmethod
    def score_tokens(self, requests: list[Request]) -> list[Score]:
        """Scores of sequences that fit `max_length`."""

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
        """Token ids; with `add_special_tokens=None` behind exactly one bos, also if the string
        already spells it.
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
                        f"a continuation of {len(continuation)} tokens does not fit max_length {self.max_length}"
                    )
                self.truncated_requests += 1
                tokens = tokens[-(self.max_length + 1) :]
            prepared.append(Request(tokens, len(continuation)))
        return [(-found.nats, found.is_greedy) for found in self.score_tokens(prepared)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text in nats, in lm-eval's disjoint windows of `max_length`
        tokens.
        """
        owners: list[int] = []
        token_requests: list[TokenRequest] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            length = self.max_length or max(1, len(tokens))
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, length, context_len=1
            ):
                owners.append(number)
                token_requests.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for number, (loglikelihood, _) in zip(
            owners, self._loglikelihood_tokens(token_requests), strict=True
        ):
            totals[number] += loglikelihood
        return totals


class MoxinLM(TokenLM):
    """Our decoder, or for scoring any causal `model(input_ids[B, T])` that gives logits or an
    object with `.logits`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_tokens: int = 4096,
        device: Any = "cpu",
    ) -> None:
        """max_length: most input tokens of a row; batch_tokens: most tokens of one forward pass,
        padding included.
        """
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
        """Greedy text up to the first stop sequence, in batches. Raises ValueError if a task asks
        for sampling.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        for options, numbers in groups.items():
            wanted = normalize_gen_kwargs(json.loads(options), DEFAULT_NEW_TOKENS)
            if wanted.get("do_sample"):
                raise ValueError(
                    "generate_until is greedy here; for sampling use lm-eval's hf model on the exported weights"
                )
            stops = handle_stop_sequences(
                wanted["until"], eos=self.tokenizer.decode([self.eot_token_id])
            )
            new_tokens = wanted["max_gen_toks"]
            prompts = {
                number: self._prompt(requests[number].args[0], new_tokens) for number in numbers
            }
            numbers = sorted(numbers, key=lambda number: -len(prompts[number]))
            while numbers:
                rows = max(1, self.batch_tokens // (len(prompts[numbers[0]]) + new_tokens))
                batch, numbers = numbers[:rows], numbers[rows:]
                for number, text in zip(
                    batch,
                    self._continue([prompts[n] for n in batch], stops, new_tokens),
                    strict=True,
                ):
                    texts[number] = postprocess_generated_text(text, stops, None)
        return texts

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f"{new_tokens} new tokens leave no room for a context in max_length {self.max_length}"
            )
        tokens = self.tok_encode(context)
        self.truncated_requests += len(tokens) > room
        return tokens[-room:]

    def _continue(self, prompts: list[list[int]], stops: list[str], new_tokens: int) -> list[str]:
        """Greedy continuations with the rolling cache, prompts padded on the left; ends when every
        row has met a stop.
        """
        width = max(map(len, prompts))
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
        """Goes into lm-eval's `config` section."""
        parameters = list(self.model.parameters())
        return {
            "model_num_parameters": sum(p.numel() for p in parameters),
            "model_dtype": str(parameters[0].dtype),
        }


class NGramLM(TokenLM):
    """An n-gram baseline under the same tasks."""

    def __init__(self, ngram: NGram, tokenizer: Any) -> None:
        super().__init__(tokenizer, max_length=None)
        self.ngram = ngram

    def score_tokens(self, requests: list[Request]) -> list[Score]:
        """The n-gram puts bos in front itself. `is_greedy` is not computed: no task here reads it."""
        whole = self.ngram.document_losses([self._without_bos(r.tokens) for r in requests])
        before = self.ngram.document_losses(
            [self._without_bos(r.tokens[: len(r.tokens) - r.num_scored]) for r in requests]
        )
        return [Score(float(a - b), False) for a, b in zip(whole, before, strict=True)]

    def _without_bos(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens[1:] if tokens and tokens[0] == self.prefix_token_id else tokens

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("the n-gram baseline scores text; it does not generate any")


def run_tasks(
    lm: TokenLM, tasks: Sequence[str], data_folder: Path, *, bootstrap_iters: int = 1
) -> dict[str, Any]:
    """Run tasks of `moxin_lab/evaluation/tasks` on `<data_folder>/<task>.jsonl`; lm-eval's result
    structure, samples included.

    The result names no path, date or machine, so that the same inputs give the same bytes;
    `stage.json` holds those. Standard errors of means are lm-eval's closed form (`bootstrap_iters`
    only has to be above 0 for them to appear).
    """
    files = {name: data_folder / f"{name}.jsonl" for name in tasks}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"no data for {', '.join(missing)}: expected <task>.jsonl in {data_folder}"
        )
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    with tempfile.TemporaryDirectory() as cache, _quiet():
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
    """A task's YAML with what it includes; lm-eval merges overrides only into configurations given
    whole.
    """
    config = yaml.safe_load((TASKS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((TASKS_FOLDER / config.pop("include")).read_text(encoding="utf-8"))
    return {**base, **config}


def write_results(results: dict[str, Any], folder: Path, model_name: str) -> None:
    """Write `results_<model>.json` and `samples_<task>_<model>.jsonl`, the files that lm-eval's
    `--output_path` leaves.
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
def _quiet() -> Iterator[None]:
    """Keep the harness's progress bars and information-level messages out of a notebook; warnings
    and errors still show.
    """
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars_were_off = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # tqdm writes there; log handlers keep the stream they were made with
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars_were_off:
            datasets.enable_progress_bars()
