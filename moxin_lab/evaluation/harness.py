"""Tasks of lm-evaluation-harness on models of ours, offline.

    results = run_tasks(lm, ["moxin_cloze_en"], data_folder)      # lm-eval's own result structure
    write_results(results, folder, "trained")                     # lm-eval's own JSON files

Importing this module loads lm-eval, which takes a few seconds.

Guarantees: nothing is fetched from a network; the same inputs give the same bytes; default tasks
are not indexed, which would take seconds.
Out of scope: how a model answers a request (`language_models.py`).
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable
from transformers import AutoTokenizer

from moxin_lab.evaluation import heldout
from moxin_lab.evaluation.bits_per_byte import prefix_token_id
from moxin_lab.evaluation.language_models import TokenLM
from moxin_lab.evaluation.ngrams import NGram
from moxin_lab.lab.progress import Progress
from moxin_lab.model import convert, plain_text
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.experiments import new_model
from moxin_lab.scales.sections import EvaluationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TASKS_FOLDER = Path(__file__).parent / "tasks"


def load_pair(
    folder: Path, *, seed: int
) -> tuple["MoxinForCausalLM", "MoxinForCausalLM", "PreTrainedTokenizerFast"]:
    """A trained model, one of the same shape with random weights, and the folder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    device = convert.best_device()
    trained = convert.from_pretrained(folder, device=device)
    untrained = new_model(trained.config, seed).to(device).eval()
    return trained, untrained, tokenizer


def fit_trigram(
    train: pd.DataFrame,
    tokenizer: "PreTrainedTokenizerFast",
    settings: EvaluationSettings,
    *,
    seed: int,
) -> tuple[NGram, int, float]:
    """A trigram on a part of the training text in the languages of the settings, the tokens that it
    read, and their megabytes.
    """
    readable = train[train["language"].isin(list(settings.languages))]
    sample = heldout.choose(
        readable, bytes_per_language=settings.ngram_training_bytes_per_language, seed=seed
    )
    tokens = plain_text.encode(tokenizer, sample["text"].tolist())
    trigram = NGram.fit(
        tokens, order=3, vocab_size=len(tokenizer), bos_id=prefix_token_id(tokenizer)
    )
    return trigram, sum(map(len, tokens)), sample["num_bytes"].sum() / 1e6


def worked_item(lm: TokenLM, item: Mapping[str, Any]) -> pd.DataFrame:
    """How a multiple choice of the cloze is scored, one row per choice: its characters, its
    log-likelihood after the context in nats, the same per character, which metric chooses it (`acc`
    by the sum, `acc_norm` per character, as in the harness), and whether it is the truth.
    """
    requests = [
        Instance("loglikelihood", {}, (item["context"], choice), place)
        for place, choice in enumerate(item["choices"])
    ]
    lengths = [len(choice) for choice in item["choices"]]
    nats = pd.Series([total for total, _ in lm.loglikelihood(requests, disable_tqdm=True)])
    per_character = nats / lengths
    chosen = {"acc": nats.idxmax(), "acc_norm": per_character.idxmax()}
    places = range(len(lengths))
    by = [", ".join(name for name, best in chosen.items() if best == place) for place in places]
    begins = [" ".join(choice.split())[:40] + "…" for choice in item["choices"]]
    return pd.DataFrame(
        {
            "choice begins": begins,
            "characters": lengths,
            "log-likelihood": nats,
            "per character": per_character,
            "chosen by": by,
            "truth": ["correct" if place == item["label"] else "" for place in places],
        }
    )


def run_all(
    models: Mapping[str, TokenLM], tasks: Sequence[str], folder: Path, *, progress: Progress
) -> dict[str, dict[str, Any]]:
    """`run_tasks` of each model on the task files in `folder`/tasks; the results are written below
    `folder` under the model's name.
    """
    scored = {}
    for name, lm in models.items():

        def report(done: int, total: int, name: str = name) -> None:
            progress(done, total, f"{name} model in the harness")

        lm.progress = report
        scored[name] = run_tasks(lm, list(tasks), folder / "tasks")
        write_results(scored[name], folder / name, name)
    return scored


def run_tasks(
    lm: TokenLM,
    tasks: Sequence[str],
    data_folder: Path,
    *,
    bootstrap_iters: int = 1,
    limit: int | None = None,
) -> dict[str, Any]:
    """Runs tasks of `moxin_lab/evaluation/tasks` on `<data_folder>/<task>.jsonl`.

    Returns lm-eval's result structure, samples included. It names no path, date or machine, so that
    the same inputs give the same bytes; `stage.json` records those. Standard errors of means are
    lm-eval's closed form, which needs `bootstrap_iters` above 0 all the same.
    limit: the first items of each task only.
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
            model=lm,
            tasks=specs,
            task_manager=manager,
            bootstrap_iters=bootstrap_iters,
            limit=limit,
        )
    for name in tasks:
        results["configs"][name]["dataset_kwargs"] = task_config(name)["dataset_kwargs"]
    for key in ("date", "pretty_env_info", "git_hash", "upper_git_hash"):
        results.pop(key, None)
    return results


def task_config(name: str) -> dict[str, Any]:
    """The YAML of a task, merged with the files that it includes, if it does.

    lm-eval applies overrides only to a configuration that is passed in full.
    """
    return load_yaml(TASKS_FOLDER / f"{name}.yaml")


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
