"""The object through which a notebook takes inputs, writes outputs, and records its results.

    stage = lab.stage("02_tokenizer", scale=scale, seed=seed, root=root)
    documents = stage.input("documents")      # checked against the hash that its stage recorded
    folder = stage.output("tokenizer")        # a new path; moved to its place by finish()
    stage.measure("bytes_per_token", 4.1, unit="bytes/token", language="zh")
    stage.claim("tokenizer.moe-cjk", "contradicted", "...")
    stage.finish()

Guarantees: nothing of an earlier finished run is touched before `finish()`; `stage.json` is written
last and atomically, so a killed stage leaves no record; an input changed since its stage finished
is refused; one run at a time in a scale's folder.
Out of scope: protection from a person who edits the artifacts of the stage that is running.

The same cells do the same work under papermill, in JupyterLab and under `moxin-lab run`. Only the
runner records a key, because only it has the executed notebook that belongs to the result; after a
run by hand `moxin-lab status` says so.
"""

import ast
import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moxin_lab import scales
from moxin_lab.lab import claims, inputs, show
from moxin_lab.lab.artifacts import (
    LabError,
    describe,
    find_root,
    read_record,
    sha256_json,
    stage_folder,
    write_json,
)
from moxin_lab.lab.environment import PeakMemory, describe_environment
from moxin_lab.lab.keys import key_parts
from moxin_lab.lab.lock import acquire_lock, hold_as_kernel, refuse_without_runner, release_lock
from moxin_lab.lab.ranks import RANK_VARIABLE
from moxin_lab.lab.recording import Number
from moxin_lab.stages import STAGES, StageInfo, producer, stage_info

PARAMETERS = ("scale", "seed", "root")
RUNNER_VARIABLE = "MOXIN_LAB_RUN"
"""Set by the runner for its kernels: the runner holds the lock already."""


def stage(name: str, *, scale: str, seed: int, root: str | Path = ".") -> "Stage":
    """Open a stage. Raises LabError or ScaleError, before any work, if something that it needs is
    missing or wrong.
    """
    _refuse_unknown_parameters()
    folder = find_root(root)
    return Stage(stage_info(name), scales.load(scale, folder), seed, folder)


def _refuse_unknown_parameters() -> None:
    """papermill only warns about `-p scal tiny` and runs with the default. The cell that it injects
    shows which parameters were given.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    for source in shell.user_ns.get("In", []) if shell is not None else []:
        if source.startswith("# Parameters\n"):
            names = {
                target.id
                for node in ast.parse(source).body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            unknown = sorted(names - set(PARAMETERS))
            if unknown:
                raise LabError(
                    f"unknown parameter {', '.join(unknown)}: "
                    f"a notebook has {', '.join(PARAMETERS)}"
                )


class Stage:
    """An open stage, created by `stage()`; see the module's text."""

    def __init__(self, info: StageInfo, scale: scales.Scale, seed: int, root: Path) -> None:
        self.name = info.name
        self.scale = scale.name
        self.decides_as = scale.decides_as
        self.seed = seed
        self.root = root
        self.folder = stage_folder(root, scale.name, info.name)
        self._info = info
        self._scale = scale
        self._inputs: dict[str, Any] = {}
        self._data_cards: dict[str, Any] = {}
        self._outputs: list[str] = []
        self._measures: list[dict[str, Any]] = []
        self._claims: list[dict[str, str]] = []
        self._progress_at = 0.0
        self._progress_line: show.Line | None = None
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise LabError(f"seed is {seed!r}: it must be a whole number of at least 0")
        self._finished = False
        self._by_hand = RUNNER_VARIABLE not in os.environ
        self._leaves_nothing = RANK_VARIABLE in os.environ  # a rank beside the first
        self._new = self.folder / ".new"
        newly_held = self._by_hand and acquire_lock(root, scale.name, info.name)
        if not self._by_hand and not self._leaves_nothing:
            hold_as_kernel(root, scale.name, info.name)
        try:
            self._open()
        except BaseException:
            if newly_held:  # a kernel in which no stage is open must not keep others out
                release_lock(root, scale.name)
            raise
        self._memory = PeakMemory()
        self._started = time.monotonic()
        show.style()

    def _open(self) -> None:
        """Begin with an empty folder, and with every input as its stage left it."""
        try:
            if not self._leaves_nothing:
                shutil.rmtree(self._new, ignore_errors=True)
                self._new.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(
                f"cannot write under {self.folder}: {error.strerror}; "
                "results go there, so make it writable"
            ) from error
        self._scales_needed = claims.scales_needed(self.root)
        for artifact in self._info.takes:
            self._inputs[artifact] = inputs.checked(self.root, self.scale, self.name, artifact)

    # ---- what the stage takes

    def settings(self, section: str) -> Any:
        """A section of the scale file (a frozen pydantic model)."""
        if section not in self._info.sections:
            raise self._not_listed(f"asks for scale section {section!r}")
        return getattr(self._scale, section)

    def hub_path(self, name: str) -> str:
        """Where a set or model of the hub is read: the local path that the scale's `hub: paths`
        gives for its name, else the name itself.
        """
        local = self.settings("hub").paths.get(name)
        return name if local is None else str(self.root / local)

    def input(self, artifact: str) -> Path:
        """Path of an earlier stage's artifact.

        Its hash was checked when this stage was opened, or is checked now if the stage may take it
        without having to. Raises LabError if it is missing or has changed.
        """
        if artifact not in self._info.inputs:
            raise self._not_listed(f"asks for artifact {artifact!r}")
        if artifact not in self._inputs:
            self._inputs[artifact] = inputs.checked(self.root, self.scale, self.name, artifact)
        return stage_folder(self.root, self.scale, producer(artifact).name) / artifact

    def data_card(self, name: str) -> Path:
        """Folder of a data set in `data_cards/`; its content is part of the stage's key."""
        if name not in self._info.data_cards:
            raise self._not_listed(f"asks for data card {name!r}")
        path = self.root / "data_cards" / name
        if not (path / "data").is_dir():
            raise LabError(
                f"{path}/data is missing: restore it (git checkout -- data_cards/{name}) "
                f"or rebuild it (moxin-lab cards build {name})"
            )
        if name not in self._data_cards:
            described = describe(path / "data")
            self._data_cards[name] = {"sha256": described["sha256"], "size": described["size"]}
        return path

    def records(self) -> list[dict[str, Any]]:
        """Records of all earlier stages that finished at this scale, in order.

        Raises LabError unless the stage's row says `reads_records`.
        """
        if not self._info.reads_records:
            raise self._not_listed("asks for stage records")
        earlier = STAGES[: STAGES.index(self._info)]
        return [
            record
            for info in earlier
            if (record := read_record(self.root, self.scale, info.name)) is not None
        ]

    def _not_listed(self, what: str) -> LabError:
        return LabError(f"{self.name} {what}, which its row in moxin_lab/stages.py does not list")

    # ---- what it leaves

    def output(self, artifact: str) -> Path:
        """A new path for an artifact: create a file or a folder there. `finish()` moves it to its
        place. Raises LabError after `finish()`, as the methods below do.
        """
        self._refuse_if_finished()
        self._refuse_beside_the_first("writes an artifact")
        if artifact not in self._info.leaves:
            raise self._not_listed(f"leaves {artifact!r}")
        path = self._new / artifact
        if artifact in self._outputs:  # a cell run twice in JupyterLab starts over
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        else:
            self._outputs.append(artifact)
        return path

    def scratch(self) -> Path:
        """A folder for resume points, which the next attempt with the same key finds again;
        `finish()` removes it.

        Anything that would change the stage's result changes the key, so a resume point of other
        code, settings or inputs is never continued; it is deleted here.
        """
        self._refuse_if_finished()
        parts = key_parts(
            self.root, self._info, self._scale, {"scale": self.scale, "seed": self.seed}
        )
        path = self.folder / ".scratch" / sha256_json(parts)[:16]
        for other in self.folder.glob(".scratch/*"):
            if other != path and not self._leaves_nothing:
                shutil.rmtree(other)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def measure(
        self,
        name: str,
        value: float,
        *,
        unit: str,
        interval: tuple[float, float] | None = None,
        headline: bool = False,
        **labels: Any,
    ) -> float:
        """Record a number for the report and the claims, and return it.

        interval: (low, high) in the same unit. headline: show it on the report's first page, where
        a stage without a headline shows its first measure. labels: what was measured, such as
        language="zh" or model="untrained". Raises LabError for a value or a bound that is not a
        finite number: a mean over nothing is no measure.
        """
        self._refuse_if_finished()
        number = value.item() if hasattr(value, "item") else value
        bounds = None if interval is None else [float(interval[0]), float(interval[1])]
        if not all(math.isfinite(each) for each in (number, *(bounds or ()))):
            raise LabError(
                f"{self.name} measures {name} {labels} as {number}, interval {bounds}: record only "
                f"finite numbers; fix the cell in notebooks/{self.name}.ipynb"
            )
        self._measures.append(
            {
                **({"headline": True} if headline else {}),
                "name": name,
                "value": number,
                "unit": unit,
                "labels": labels,
                "interval": bounds,
            }
        )
        return value

    def record(self, numbers: Iterable[Number]) -> None:
        """`measure` each of the numbers that a stage's `verdicts` module computed."""
        for name, value, unit, interval, labels in numbers:
            self.measure(name, value, unit=unit, interval=interval, **labels)

    def claim(self, claim_id: str, verdict: str, evidence: str) -> None:
        """Record a verdict on a published claim.

        evidence: one or two sentences with the number that the verdict rests on. Raises LabError
        for an unknown claim or verdict, and for a verdict other than `not attempted` on a claim
        that this scale cannot decide.
        """
        self._refuse_if_finished()
        claims.refuse_unfounded(
            self.name, self.scale, self.decides_as, claim_id, verdict, self._scales_needed
        )
        self._claims = [claim for claim in self._claims if claim["id"] != claim_id]
        self._claims.append({"id": claim_id, "verdict": verdict, "evidence": evidence})

    # ---- what a person sees

    def progress(self, step: int, total: int, text: str = "") -> None:
        """Show how far the stage is, at most four times per second: on the runner's terminal, or,
        if the notebook is run by hand, in a line below the running cell.
        """
        now = time.monotonic()
        if self._leaves_nothing:
            return
        if now - self._progress_at < 0.25 and step < total:
            return
        self._progress_at = now
        if self._by_hand:
            self._progress_line = show.progress_line(self._progress_line, step, total, text)
        else:
            write_json(self.folder / ".progress.json", {"step": step, "total": total, "text": text})

    def show_figure(
        self, figure: Any, *, alt: str, caption: str, scale: str | None = None, clock: bool = False
    ) -> None:
        """Display a matplotlib figure with a text alternative and the scale's label, and close it.

        scale: the scale of what is shown, if not this run's (a committed measurement); an empty
        string for what has no scale (a published table, a document). clock: a clock decides what it
        shows, so that it may differ between equal runs (`repeated.py`).
        """
        shown = self.scale if scale is None else scale
        show.figure_output(figure, alt=alt, caption=caption, scale=shown, clock=clock)

    def show_table(
        self,
        frame: Any,
        *,
        caption: str,
        decimals: int | dict[str, int] = 3,
        scale: str | None = None,
        clock: bool = False,
    ) -> None:
        """Display a pandas DataFrame as an accessible table with the scale's label; `scale` and
        `clock` as in `show_figure`.
        """
        shown = self.scale if scale is None else scale
        show.table_output(frame, caption=caption, scale=shown, decimals=decimals, clock=clock)

    def say(self, text: str, *, clock: bool = False) -> None:
        """Display Markdown: a sentence whose numbers were just computed; `clock` as in
        `show_figure`.
        """
        show.say(text, clock=clock)

    def finish(self) -> dict[str, Any]:
        """Hash the outputs, move them to their place and write `stage.json`.

        Returns the stage's seconds and peak memory. Raises LabError if an output that the stage's
        row lists was not written, an input has changed since the stage was opened, or the run that
        started this kernel has ended; ValueError for a measure that is not finite.
        """
        self._refuse_if_finished()
        self._refuse_beside_the_first("finishes")
        missing = [name for name in self._info.leaves if not (self._new / name).exists()]
        if missing:
            raise LabError(
                f"{self.name} ends without writing {', '.join(missing)}, which its row in "
                "moxin_lab/stages.py promises"
            )
        if not self._by_hand:
            refuse_without_runner(self.name, int(os.environ[RUNNER_VARIABLE]))
        for artifact, taken in self._inputs.items():
            inputs.refuse_if_changed(self.root, self.scale, self.name, artifact, taken["sha256"])
        outputs = {name: describe(self._new / name) for name in self._info.leaves}
        record: dict[str, Any] = {
            "stage": self.name,
            "title": self._info.title,
            "scale": self.scale,
            "decides_as": self.decides_as,
            "seed": self.seed,
            "state": "done",
            "key": None,
            "key_parts": None,
            "parameters": {"scale": self.scale, "seed": self.seed},
            "settings": {
                name: getattr(self._scale, name).model_dump(mode="json")
                for name in self._info.sections
            },
            "inputs": self._inputs,
            "data_cards": self._data_cards,
            "outputs": outputs,
            "measures": self._measures,
            "claims": self._claims,
            "environment": describe_environment(self.root),
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_bytes": self._memory.stop(),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        # What JSON cannot hold is a fault of the stage: fail before the old result is replaced.
        json.dumps(record, allow_nan=False)
        (self.folder / "stage.json").unlink(missing_ok=True)
        for name in self._info.leaves:
            final = self.folder / name
            shutil.rmtree(final) if final.is_dir() else final.unlink(missing_ok=True)
            (self._new / name).rename(final)
        write_json(self.folder / "stage.json", record)
        shutil.rmtree(self._new)
        shutil.rmtree(self.folder / ".scratch", ignore_errors=True)
        (self.folder / ".progress.json").unlink(missing_ok=True)
        self._finished = True
        if self._by_hand:
            release_lock(self.root, self.scale)
        if self._claims:
            import pandas as pd

            rows = pd.DataFrame(self._claims).rename(columns={"id": "claim"}).set_index("claim")
            self.show_table(rows, caption="Verdicts of this stage on published claims")
        show.say(
            f"Stage `{self.name}` finished at {self.scale} scale: {record['seconds']:.1f} s in "
            f"this notebook, peak memory {record['peak_memory_bytes'] / 2**30:.2f} GiB, "
            f"artifacts {', '.join(f'`{name}`' for name in outputs)}.",
            clock=True,
        )
        return {"seconds": record["seconds"], "peak_memory_bytes": record["peak_memory_bytes"]}

    def _refuse_beside_the_first(self, what: str) -> None:
        if self._leaves_nothing:
            raise LabError(
                f"{self.name}: rank {os.environ[RANK_VARIABLE]} {what}, which the first rank alone "
                "may: move the tag of the last cell of all ranks up"
            )

    def _refuse_if_finished(self) -> None:
        if self._finished:
            raise LabError(
                f"{self.name} is finished in this kernel, and its result is kept: to change it, "
                "run the notebook again from the cell with lab.stage(...) (in JupyterLab: Run, Run "
                "All Cells); a single cell of a finished stage records nothing"
            )
