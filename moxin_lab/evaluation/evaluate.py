"""`moxin-lab evaluate`: any checkpoint on any task of lm-evaluation-harness, or of your own.

    rows = evaluate(Path("my_model"), ["arc_easy", "moxin_gsm8k"], limit=100, out=Path("out.json"))

Guarantees: the folder, the results file that would be replaced, the tasks with their data and gold
answers, and the sandbox for generated code are checked in this order, and refused with the reason,
before a weight is read; the results are the harness's own, with raw samples.
Out of scope: chat templates, sampling.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.evaluator import simple_evaluate

from moxin_lab.evaluation import checkpoints, long_context, named_tasks, result_files, sandbox
from moxin_lab.evaluation.checkpoints import Engine
from moxin_lab.evaluation.harness import quiet
from moxin_lab.lab.artifacts import LabError, sha256_file, write_json
from moxin_lab.model import plain_text


def evaluate(
    model: Path,
    names: Sequence[str],
    *,
    include: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    out: Path | None = None,
    data: Path | None = None,
    engine: Engine = "lab",
    max_length: int | None = None,
    new_tokens: int | None = None,
    dtype: str = "float32",
    batch_size: int = 8,
    texts: bool = True,
    online: bool = False,
) -> list[dict[str, Any]]:
    """The rows of `result_files.scores`; the whole is written to `out`, if that is given.

    names, include, shots, limit, data, online: of `named_tasks.load`; model, engine, max_length,
    dtype, batch_size: of `checkpoints.load`. new_tokens: longest generation, in place of what a
    task says. texts: False keeps hashes in place of words in `out`. Raises LabError.
    """
    began = time.monotonic()
    checkpoint = checkpoints.check(model, engine)
    if out is not None:
        if not out.resolve().parent.is_dir():
            raise LabError(f"--json {out}: there is no folder {out.resolve().parent}")
        if out.exists():
            result_files.read(out)  # only a file of ours, of this version, is replaced
    with tempfile.TemporaryDirectory(prefix="moxin-evaluate-") as cache:
        tasks = named_tasks.load(
            names, include, shots=shots, limit=limit, data=data, cache=Path(cache), online=online
        )
        if tasks.run_programs:
            try:
                sandbox.check()
            except sandbox.SandboxError as error:
                raise LabError(str(error)) from error
        lm = checkpoints.load(
            checkpoint,
            engine,
            max_length=max_length,
            dtype=dtype,
            batch_size=batch_size,
        )
        lm.progress = _progress if sys.stderr.isatty() else None
        generation = {} if new_tokens is None else {"max_gen_toks": new_tokens}
        try:
            with quiet():
                results: Any = simple_evaluate(
                    model=lm,
                    tasks=tasks.objects,
                    task_manager=tasks.manager,
                    limit=limit,
                    gen_kwargs=generation or None,
                    bootstrap_iters=1,  # standard errors of means are closed forms
                    confirm_run_unsafe_code=tasks.run_programs,
                )
        except (ValueError, NotImplementedError, sandbox.SandboxError) as error:
            # What our decoder or the harness says of a request that it does not carry out.
            raise LabError(f"{model}: {error}") from error
    extra = [f"at most {new_tokens} new tokens"] if new_tokens is not None else []
    if dtype != "float32":
        extra.append(dtype)
    rows = result_files.scores(results, tasks.facts, "; ".join(extra))
    truncated = getattr(lm, "truncated_requests", None)
    if out is not None:
        ours = {
            "model": {
                **checkpoints.describe(checkpoint),
                "engine": engine,
                "dtype": dtype,
                "max_length": lm.max_length,
            },
            "tasks": {name: fact._asdict() for name, fact in tasks.facts.items()},
            "scores": rows,
            "truncated_requests": truncated,
            "seconds": round(time.monotonic() - began, 1),
        }
        result_files.write(out, results, ours, texts=texts)
    if truncated:
        print(
            f"moxin-lab: {truncated} requests were longer than {lm.max_length} tokens and lost "
            "their beginning",
            file=sys.stderr,
        )
    return rows


def find_needles(
    model: Path,
    texts: Sequence[Path],
    *,
    window: int | None = None,
    count: int = 24,
    out: Path | None = None,
    seed: int = 0,
) -> str:
    """What `long_context.search` finds with our decoder, in a sentence; all of it goes to `out`.

    texts: plain text files that hide the needle. window: in place of the model's own attention
    window. Raises LabError.
    """
    began = time.process_time()
    path = checkpoints.check(model)
    if missing := [str(each) for each in texts if not each.is_file()]:
        raise LabError(f"--needles: there is no text file {', '.join(missing)}")
    lm = checkpoints.load(path)
    decoder, tokenizer = lm.model, lm.tokenizer
    if window is not None:
        decoder = long_context.with_window(decoder, window)
    window = decoder.config.sliding_window
    if window is None:
        raise LabError(f"{model} has no attention window: give --window N")
    tokens = [plain_text.encode(tokenizer, each.read_text(encoding="utf-8")) for each in texts]
    try:
        found = long_context.search(
            decoder, tokenizer, tokens, count=count, bos_id=lm.prefix_token_id, seed=seed
        )
    except ValueError as error:
        raise LabError(f"--needles: {error}") from error
    table = long_context.needle_table(found, seed=seed)
    if out is not None:
        rows = pd.concat(found, names=["reader"]).reset_index("reader")
        write_json(
            out,
            {
                "format": 1,
                "model": checkpoints.describe(path),
                "window": window,
                "texts": {each.name: sha256_file(each) for each in texts},
                "table": table.to_dict("records"),
                "items": rows.to_dict("list"),
                "processor_seconds": round(time.process_time() - began),
            },
        )
    return long_context.sentence(table, window, checkpoints.describe(path)["name"])


def _progress(done: int, total: int) -> None:
    # `quiet` puts another stream in place of sys.stderr while the harness runs.
    end = "\n" if done == total else ""
    print(f"\r{done:,} of {total:,} requests", end=end, file=sys.__stderr__, flush=True)
