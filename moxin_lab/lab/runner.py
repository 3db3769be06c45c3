"""Runs notebooks with papermill: skips what is unchanged, resumes where a run stopped, says why.

    run(root, "tiny")        # names of the stages that ran
    status(root, "tiny")     # each stage with the reasons why it would run

A stage is up to date when its record carries the key that it has now (`keys.py` says what is in it)
and its artifacts still have the recorded hashes. A stage that fails or is killed leaves
`failed.ipynb`, the partly executed notebook, beside its last good result.

Guarantees: the next run begins at the stage that failed; a stage that failed has not touched its
last good result; the same run gives the same executed notebook, but for what its cells print; an
executed notebook holds no path of this machine. Of several ranks of one run (`ranks.py`) the first
alone does all this.
Out of scope: resuming inside a stage (`Stage.scratch`), and parameters that a notebook does not
have, of which papermill only warns (`lab.stage`).
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from moxin_lab import scales
from moxin_lab.lab.artifacts import (
    LabError,
    describe,
    read_json,
    read_record,
    sha256_json,
    stage_folder,
    write_atomically,
    write_json,
)
from moxin_lab.lab.execution import TooMuchOutput, execute
from moxin_lab.lab.keys import differences, key_parts
from moxin_lab.lab.layout import presentable
from moxin_lab.lab.lock import BY_RUNNER, acquire_lock, release_lock
from moxin_lab.lab.ranks import DIED, Ranks, cells_of_all, leaving_nothing, log_file
from moxin_lab.lab.stage import RUNNER_VARIABLE
from moxin_lab.stages import STAGES, StageInfo, producer

BINARY = ("image/png", "image/jpeg", "image/gif", "application/pdf")
"""Kinds of outputs that nbformat keeps as base64."""


class StageFailed(LabError):
    """A notebook was executed and failed; its page can show how far it came."""


@dataclass(frozen=True)
class Plan:
    """What the runner would do with a stage; without reasons to run it is up to date."""

    info: StageInfo
    parts: dict[str, Any]
    reasons: list[str]


def plan(root: Path, scale: scales.Scale, info: StageInfo, seed: int) -> Plan:
    """Compare a stage's record and artifacts with the key that it has now."""
    parts = key_parts(root, info, scale, {"scale": scale.name, "seed": seed})
    folder = stage_folder(root, scale.name, info.name)
    record = read_record(root, scale.name, info.name)
    reasons = ["its last run failed or was stopped"] if (folder / "failed.ipynb").exists() else []
    if record is None:
        return Plan(info, parts, reasons or ["it has not run yet"])
    if record["key"] is None:
        return Plan(
            info,
            parts,
            [*reasons, "it was last run by hand, so no executed notebook belongs to its result"],
        )
    reasons += differences(record["key_parts"], parts)
    for name, output in record["outputs"].items():
        path = folder / name
        if not path.exists():
            reasons.append(f"artifact {name} is gone")
        elif _hash(path) != output["sha256"]:
            reasons.append(f"artifact {name} was changed after the stage wrote it")
    if not (folder / "notebook.ipynb").exists():
        reasons.append("its executed notebook is gone")
    return Plan(info, parts, reasons)


def _hash(path: Path) -> str | None:
    """SHA-256 of an artifact; None for a folder from which every file was taken."""
    try:
        return describe(path)["sha256"]
    except LabError:
        return None


def status(root: Path, scale_name: str, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Each stage's name and why it would run.

    A stage that takes artifacts of one that would run may run too, if those artifacts change.
    """
    scale = scales.load(scale_name, root)
    rows: list[tuple[str, list[str]]] = []
    would_run: set[str] = set()
    for info in STAGES:
        reasons = plan(root, scale, info, seed).reasons
        upstream = [producer(name).name for name in info.inputs]
        if info.reads_records:
            upstream = [other.name for other in STAGES[: STAGES.index(info)]]
        running = [name for name in dict.fromkeys(upstream) if name in would_run]
        if running and not reasons:
            reasons = [f"if the result of {', '.join(running)} differs"]
        if reasons:
            would_run.add(info.name)
        rows.append((info.name, reasons))
    return rows


def run(
    root: Path,
    scale_name: str,
    *,
    seed: int = 0,
    stages: tuple[StageInfo, ...] = STAGES,
    force: bool = False,
    out: TextIO | None = None,
    ranks: Ranks | None = None,
) -> list[str]:
    """Run the given stages in order where they are not up to date; names of those that ran.

    ranks: this process among those that torchrun started, for a single stage. Raises StageFailed at
    the first stage that fails; results of earlier stages are kept. Raises LabError if nothing can
    be run.
    """
    scale = scales.use(scale_name, root)  # the kernels are given its name alone
    out = out or sys.stdout
    if ranks is not None:
        return _run_among(ranks, root, scale, seed, stages, force, out)
    acquire_lock(root, scale.name, BY_RUNNER)
    ran = []
    try:
        for info in stages:
            planned = plan(root, scale, info, seed)
            where = f"[{stages.index(info) + 1}/{len(stages)}] {info.name}"
            if not planned.reasons and not force:
                print(f"{where}  up to date", file=out, flush=True)
                continue
            print(f"{where}  runs: {'; '.join(planned.reasons) or 'forced'}", file=out, flush=True)
            record = _execute(root, scale.name, planned, seed, where, out)
            ran.append(info.name)
            memory = record["peak_memory_bytes"] / 2**30
            print(
                f"{where}  done in {record['seconds']:.1f} s, peak memory {memory:.2f} GiB",
                file=out,
                flush=True,
            )
    finally:
        release_lock(root, scale.name)
    return ran


def _run_among(
    ranks: Ranks,
    root: Path,
    scale: scales.Scale,
    seed: int,
    stages: tuple[StageInfo, ...],
    force: bool,
    out: TextIO,
) -> list[str]:
    """`run` of one stage by several ranks, of which the first decides and writes."""
    if len(stages) != 1:
        raise LabError(
            f"{len(stages)} stages and {ranks.size} rank(s) of torchrun: ranks share one stage, so "
            "name it, such as --only 04"
        )
    info = stages[0]
    cells = cells_of_all(root / "notebooks" / f"{info.name}.ipynb")
    with ranks.together():
        try:
            if ranks.rank == 0:
                return _run_first(ranks, root, scale, seed, info, force, out)
            if ranks.told() == "up to date":
                return []
            log = log_file(stage_folder(root, scale.name, info.name), ranks.rank)
            with leaving_nothing(ranks.rank):
                _papermill(root, info, cells, log, scale.name, seed, ranks)
            return [info.name]
        except StageFailed as error:
            raise StageFailed(ranks.cause(str(error))) from None
        except (LabError, OSError) as error:
            ranks.report(str(error))
            raise


def _run_first(
    ranks: Ranks,
    root: Path,
    scale: scales.Scale,
    seed: int,
    info: StageInfo,
    force: bool,
    out: TextIO,
) -> list[str]:
    """`run` of one stage in rank 0, which tells the others what it finds."""
    where = f"[{ranks.size} ranks] {info.name}"
    acquire_lock(root, scale.name, BY_RUNNER)
    try:
        planned = plan(root, scale, info, seed)
        reasons = planned.reasons or (["forced"] if force else [])
        if not reasons:
            ranks.tell("up to date")
            print(f"{where}  up to date", file=out, flush=True)
            return []
        shutil.rmtree(log_file(stage_folder(root, scale.name, info.name), 0).parent, True)
        ranks.tell("run")
        print(f"{where}  runs: {'; '.join(reasons)}", file=out, flush=True)
        record = _execute(root, scale.name, planned, seed, where, out, ranks)
        print(f"{where}  done in {record['seconds']:.1f} s", file=out, flush=True)
        return [info.name]
    finally:
        release_lock(root, scale.name)


def _execute(
    root: Path,
    scale_name: str,
    planned: Plan,
    seed: int,
    where: str,
    out: TextIO,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Run one notebook through papermill; its completed record. Raises StageFailed if a cell raised
    or the kernel died.
    """
    info = planned.info
    folder = stage_folder(root, scale_name, info.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"cannot write under {folder}: {error.strerror}; results go there, so make it writable"
        ) from error
    source = root / "notebooks" / f"{info.name}.ipynb"
    # Named so until it has succeeded: a kill at any moment leaves the right name.
    working = folder / "failed.ipynb"
    began = time.monotonic()
    with _progress_line(folder, where, out):
        _papermill(root, info, source, working, scale_name, seed, ranks)
    record = read_record(root, scale_name, info.name)
    if record is None:
        raise StageFailed(
            f"{info.name} ran to its end without stage.finish(): "
            f"add it as the last cell of notebooks/{info.name}.ipynb"
        )
    record["key_parts"] = planned.parts
    record["key"] = sha256_json(planned.parts)
    record["seconds_in_cells"] = record["seconds"]
    record["seconds"] = round(time.monotonic() - began, 3)
    _clean_notebook(working, root)
    working.replace(folder / "notebook.ipynb")
    write_json(folder / "stage.json", record)
    return record


def _papermill(
    root: Path,
    info: StageInfo,
    cells: Any,
    working: Path,
    scale_name: str,
    seed: int,
    ranks: Ranks | None,
) -> None:
    """Execute cells, given as a path or as nbformat's, into `working`. Raises StageFailed if a cell
    raised or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    source = f"notebooks/{info.name}.ipynb"
    parameters = {"scale": scale_name, "seed": seed, "root": "."}
    on_error = {} if ranks is None else {"on_error": ranks.report}
    try:
        working.parent.mkdir(parents=True, exist_ok=True)
        with _kernel_environment():
            execute(cells, working, parameters, cwd=root, **on_error)
    except papermill.PapermillExecutionError as error:
        _clean_notebook(working, root)
        if error.ename in ("LabError", "ScaleError"):
            named = info.name in error.evalue
            raise StageFailed(error.evalue if named else f"{info.name}: {error.evalue}") from None
        raise StageFailed(
            f"{info.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"correct {source}, or the code that it calls, and run again: the run resumes at this "
            f"stage (a copy of the notebook with its outputs so far is {working})"
        ) from None
    except TooMuchOutput as error:
        _clean_notebook(working, root)
        raise StageFailed(
            f"{info.name}: {error}; correct {source} and run again: the run resumes at this stage"
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        _clean_notebook(working, root)
        raise StageFailed(
            f"{info.name}: {DIED} ({type(error).__name__}), most often for lack of memory "
            f"or because it was killed; run again: the run resumes at this stage"
        ) from None
    except OSError as error:
        raise StageFailed(
            f"{info.name}: {working} cannot be written: {error.strerror or error}; free space "
            "there, or make it writable, and run again: the run resumes at this stage"
        ) from error


def _clean_notebook(path: Path, root: Path) -> None:
    """Drop times, paths and identifiers that papermill, the kernel, warnings and tracebacks
    write. A file that is not a whole notebook, as a full disk leaves it, stays as it is.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (FileNotFoundError, ValueError, nbformat.reader.NotJSONError):
        return
    notebook.metadata.pop("papermill", None)
    for position, cell in enumerate(notebook.cells, start=1):
        cell.metadata = {
            key: value
            for key, value in cell.metadata.items()
            if key in ("jupyter", "tags") and value
        }
        cell.id = f"cell-{position:02d}"
        if cell.cell_type == "code":
            cell.outputs = [_without_paths(output, root) for output in cell.outputs]
    write_atomically(path, nbformat.writes(notebook) + "\n")


def _without_paths(value: Any, root: Path, of_program: bool = False) -> Any:
    """An output of a cell, or a part of it, with texts as `layout.presentable` shows them."""
    if isinstance(value, str):
        return presentable(value, root, of_program=of_program)
    if isinstance(value, list):
        return [_without_paths(item, root, of_program) for item in value]
    if isinstance(value, dict):
        about_itself = (
            of_program or value.get("output_type") == "error" or value.get("name") == "stderr"
        )
        changed = {
            key: item if key in BINARY else _without_paths(item, root, about_itself)
            for key, item in value.items()
        }
        return type(value)(changed)
    return value


@contextlib.contextmanager
def _kernel_environment() -> Iterator[None]:
    """Set the environment variables that the kernels inherit; put them back afterwards."""
    variables = {
        RUNNER_VARIABLE: str(os.getpid()),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _progress_line(folder: Path, where: str, out: TextIO) -> Iterator[None]:
    """Show what `.progress.json` says: one line rewritten in place on a terminal, one line every
    15 s in a log.
    """
    file = folder / ".progress.json"
    file.unlink(missing_ok=True)
    stop = threading.Event()
    terminal = out.isatty()
    began = time.monotonic()

    def watch() -> None:
        while not stop.wait(0.5 if terminal else 15):
            seconds = int(time.monotonic() - began)
            text = ""
            if file.exists():
                with contextlib.suppress(LabError, KeyError, TypeError):
                    state = read_json(file)
                    text = f"{state['text']}  {state['step']}/{state['total']}"
            line = f"{where}  {seconds // 60:d}:{seconds % 60:02d}  {text}"
            try:
                out.write(f"\r\x1b[2K{line[:150]}" if terminal else line + "\n")
                out.flush()
            except BrokenPipeError:
                return  # the reader has gone; the stage's last line will say so in the main thread

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        if terminal:
            out.write("\r\x1b[2K")
            out.flush()
        file.unlink(missing_ok=True)
