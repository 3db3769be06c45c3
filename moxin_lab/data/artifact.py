"""Stage 01's run of the recipe, and what the notebook reads of the folder that it leaves.

    given = artifact.inputs(stage)        # refuses a missing corpus before any work
    made = artifact.make(stage, given)    # documents/: train, heldout, removed, udhr
    gone = artifact.removed(made.folder)  # labels of the removed documents, without their texts

The run goes on where one with the same code and settings was killed (`stage.scratch`).

Guarantees: the artifact's bytes depend on the documents, the steps and the seed: run.json in it has
no times; memory holds labels of documents, one shard, and the texts that are asked for by id.
Out of scope: what a step does (`pipelines.py`), tables (`tables.py`), figures.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from moxin_lab.data import curation, engine, pipelines, steps_local
from moxin_lab.data.extract import CARDS
from moxin_lab.data.readers import Readable
from moxin_lab.data.steps import CODE
from moxin_lab.lab import Stage, curated
from moxin_lab.lab.artifacts import write_json

RECORDED = ("pipeline", "steps", "settings", "inputs", "heldout_share", "seed", "failed")
"""Of a run's record what the artifact keeps; times would change its hash at every run."""
DECLARATION, SHOWN = "udhr", "help_pages"
"""Cards that are read at every scale: translations for evaluation; web pages to look at."""
AFTER_LANGUAGE = ("decontamination", "near-duplicates", "split")
"""Steps that removed documents which are compared with each other nevertheless."""


REASONS = ["step", "reason", "source", "language", "documents"]


class Made(NamedTuple):
    """folder: the artifact. work: resume points. sets: evaluation sets that were looked for.
    cpu_seconds: processor time of the whole pipeline in this process; None if it went on where an
    earlier attempt was killed.
    """

    folder: Path
    work: Path
    sets: list[str]
    cpu_seconds: float | None
    counts: pd.DataFrame
    """step, source, language, documents, bytes: what is left after each step."""
    reasons: pd.DataFrame
    """step, reason, source, language, documents: what was removed."""


def inputs(stage: Stage) -> list[Readable]:
    """The scale's sources. Raises CurationError or CorpusError for one that is not there."""
    settings = stage.settings("data")
    for name in {*settings.source_names, DECLARATION, SHOWN} & CARDS.keys():
        stage.data_card(name)
    return list(curation.inputs((), settings, stage.settings("hub"), stage.root))


def make(stage: Stage, given: Sequence[Readable]) -> Made:
    """The sources through the recipe `slimpajama`, and the declaration in NFC, into the artifact.

    Raises what `engine.run` raises.
    """
    index, sets = pipelines.evaluation_sets(stage.data_card("instructions"))
    options = curation.options(stage.settings("data"), index, stage.seed)
    work = stage.scratch()
    is_new = not (work / "documents").exists()
    recorded = curation.recorded(options, sets)
    began = time.process_time()
    _run(stage, pipelines.slimpajama(options), given, work / "documents", recorded)
    cpu_seconds = time.process_time() - began
    declaration = [curation.card(stage.root, DECLARATION)]
    _run(stage, [steps_local.nfc()], declaration, work / DECLARATION, {})
    folder = stage.output("documents")
    shutil.copytree(work / "documents", folder)
    shutil.copytree(work / DECLARATION, folder / DECLARATION)
    for place in (folder, folder / DECLARATION):
        told = json.loads((place / "run.json").read_text(encoding="utf-8"))
        write_json(place / "run.json", {name: told[name] for name in RECORDED})
    funnel = json.loads((folder / "funnel.json").read_text(encoding="utf-8"))
    return Made(
        folder,
        work,
        sets,
        cpu_seconds if is_new else None,
        pd.DataFrame([row for row in funnel["steps"] if row["step"] != "fingerprints"]),
        pd.DataFrame(funnel["removed"], columns=REASONS),
    )


def _run(
    stage: Stage,
    steps: list[Any],
    given: Sequence[Readable],
    out: Path,
    recorded: dict[str, Any],
) -> None:
    # A line is said at the end of each part of the plan, and in between for each ten seconds.
    total, done = len(steps) + 1, 0

    def say(line: str) -> None:
        nonlocal done
        done = min(done + 1, total - 1)
        stage.progress(done, total, line)

    stage.progress(0, total, f"reading {', '.join(each.name for each in given)}")
    engine.run("slimpajama", steps, given, out, settings=recorded, say=say)


def shown_pages(stage: Stage, made: Made) -> pa.Table:
    """id, language, page, step, text of the help pages that were read: those of the artifact, or,
    where they are no source of the scale, of a run of their own.
    """
    folder = made.folder
    if SHOWN not in stage.settings("data").sources:
        options = curation.options(stage.settings("data"), None, stage.seed)
        folder = made.work / "shown"
        cards = [curation.card(stage.root, SHOWN)]
        recorded = curation.recorded(options, [])
        _run(stage, pipelines.slimpajama(options), cards, folder, recorded)
    columns = ["id", "source", "language", "page", "text"]
    tables = []
    for side in engine.SIDES:
        is_gone = side == "removed"
        for shard in curated.shards(folder, side, [*columns, "step"] if is_gone else columns):
            if not is_gone:
                shard = shard.append_column("step", pa.nulls(len(shard), pa.string()))
            mine = pc.equal(shard["source"], SHOWN)
            read = pc.fill_null(pc.not_equal(shard["step"], "reading"), True)
            tables.append(shard.filter(pc.and_(mine, read)).select([*columns, "step"]))
    return pa.concat_tables(tables).sort_by("id")


def compared(pages: pa.Table) -> pa.Table:
    """Those of `shown_pages` that are long enough and in their language, of equal texts the first:
    what a search for near-duplicates is measured on.
    """
    reached = pc.is_in(pages["step"], pa.array(AFTER_LANGUAGE, pa.string()))
    pages = pages.filter(pc.or_(pc.is_null(pages["step"]), reached))
    first: dict[str, str] = {}  # of each text; ids ascend
    for key, text in zip(pages["id"].to_pylist(), pages["text"].to_pylist(), strict=True):
        first.setdefault(text, key)
    return pages.filter(pc.is_in(pages["id"], pa.array(first.values(), pa.string())))


def removed(folder: Path) -> pd.DataFrame:
    """id, source, language, step, reason, detail, num_bytes of each removed document."""
    columns = ["id", "source", "language", "step", "reason", "detail", "num_bytes"]
    return curated.read(folder, "removed", columns).to_pandas()


def kept(folder: Path, side: str) -> pd.DataFrame:
    """source, language, licence, code_language, page, num_bytes of each document of a side."""
    columns = ["source", "language", "licence", "code_language", "page", "num_bytes"]
    return curated.read(folder, side, columns).to_pandas()


def texts(folder: Path, ids: Iterable[str]) -> dict[str, str]:
    """The texts of documents, wherever they are."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, str] = {}
    for side in engine.SIDES:
        for shard in curated.shards(folder, side, ["id", "text"]):
            rows = shard.filter(pc.is_in(shard["id"], wanted))
            found |= dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    return found


def prose(folder: Path, side: str) -> Iterator[pa.Table]:
    """id, language, text of a side's documents that are no code, shard by shard."""
    for shard in curated.shards(folder, side, ["id", "language", "text"]):
        yield shard.filter(pc.not_equal(shard["language"], CODE))


def prose_table(folder: Path, side: str) -> pa.Table:
    """The tables of `prose` as one."""
    return pa.concat_tables(prose(folder, side))
