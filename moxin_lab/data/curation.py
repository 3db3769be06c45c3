"""`moxin-lab curate` and `moxin-lab explain`: the sources of a scale through a recipe, and what
became of one document.

    curate("slimpajama", scale, root, out, ["small_corpus"])
    explain(out, "small_corpus/zlib/inflate.c")   # or the artifact of stage 01

Guarantees: a source is read where the scale says; `explain` reads what a run wrote and computes
nothing anew.
Out of scope: the steps and their order (`pipelines.py`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import daft
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from moxin_lab.data import corpus_text, engine, funnel, funnel_page, readers
from moxin_lab.data.decontaminate import Index
from moxin_lab.data.dedup import Settings
from moxin_lab.data.extract import CARDS, HUB_SETS, CurationError, extract_card
from moxin_lab.data.pipelines import RECIPES, Options, evaluation_sets
from moxin_lab.data.readers import READING, File
from moxin_lab.data.steps import COLUMNS, LABELS
from moxin_lab.lab import curated
from moxin_lab.scales import Scale
from moxin_lab.scales.sections import CorpusSettings, DataSettings, HubSettings


class Card(NamedTuple):
    """A data card as an input of a pipeline; its rows are extracted when it is read."""

    name: str
    files: tuple[File, ...]

    def read(self, file: File) -> daft.DataFrame:
        """The documents and the rows that yield none, in the columns `steps.COLUMNS`."""
        documents, rejected = extract_card(Path(file.path))
        texts = documents["text"].to_pylist()
        gone = [None] * len(texts)
        kept = _columns(documents, texts, gone, gone, gone)
        steps = [READING] * rejected.num_rows
        reasons, details = (rejected[name].to_pylist() for name in ("reason", "detail"))
        return daft.from_arrow(
            pa.concat_tables(
                [kept, _columns(rejected, [""] * rejected.num_rows, steps, reasons, details)]
            )
        )


def _columns(
    rows: pa.Table, texts: list[str], step: list[Any], reason: list[Any], detail: list[Any]
) -> pa.Table:
    strings = {name: rows[name] for name in LABELS if name in rows.column_names}
    empty = pa.array([""] * rows.num_rows, pa.string())
    columns = [strings.get(name, empty) for name in LABELS]
    columns += [pa.array(column, pa.string()) for column in (texts, step, reason, detail)]
    sizes = [[len(text.encode())] for text in texts]
    return pa.table([*columns, pa.array(sizes, pa.list_(pa.int64()))], names=list(COLUMNS))


def inputs(
    names: Sequence[str], data: DataSettings, hub: HubSettings, root: Path, recipe: str = ""
) -> list[Card | readers.Input]:
    """The sources as inputs of a pipeline: data cards, hub sets, the corpus of the small scale, and
    the entries of `data.corpora`; by default those of the scale. `dclm` extracts
    the corpus's web pages its own way.

    Raises CurationError for a name that is none, or a set without files.
    """
    return [_input(name, data, hub, root, recipe) for name in names or data.source_names]


def _input(
    name: str, data: DataSettings, hub: HubSettings, root: Path, recipe: str
) -> Card | readers.Input:
    own = {entry.name: entry for entry in data.corpora}
    if name in own:
        return of_entry(own[name], root)
    if name == corpus_text.SOURCE:
        return readers.of_corpus("small", "html" if recipe == "dclm" else "text")
    if name in HUB_SETS:
        path = HUB_SETS[name].path
        local = hub.paths.get(path)
        place = f"hf://datasets/{path}" if local is None else str(root / local)
        return readers.of_hub(name, place, "" if local else data.hub_files[name])
    if name in CARDS:
        return card(root, name)
    known = [corpus_text.SOURCE, *CARDS, *HUB_SETS, *own]
    raise CurationError(f"no source {name!r}: there are {', '.join(known)}")


def card(root: Path, name: str) -> Card:
    """A data card as an input of a pipeline."""
    folder = root / "data_cards" / name
    size = sum(path.stat().st_size for path in (folder / "data").glob("*.parquet"))
    return Card(name, (File(name, str(folder), size),))


def of_entry(entry: CorpusSettings, root: Path) -> readers.Input:
    """An entry of `data.corpora` as an input of a pipeline."""
    place = f"hf://datasets/{entry.hub}" if entry.hub else str(root / str(entry.path))
    layout = readers.plain(entry.text, entry.language, page=entry.page)
    return readers.Input(entry.name, layout, readers.files_below(place, entry.files or ""))


def options(data: DataSettings, evaluation: Index | None, seed: int) -> Options:
    """A recipe's options by the `data` section of a scale."""
    return Options(
        near=Settings(
            data.minhash_ngram_size,
            data.minhash_permutations,
            data.minhash_bands,
            data.minhash_rows,
            data.jaccard_threshold,
        ),
        minimum_characters=data.minimum_characters,
        language_share=data.language_share,
        unfiltered=frozenset(data.benchmark_sources),
        evaluation=evaluation,
        heldout_share=data.heldout_share,
        heldout_bands=(data.heldout_bands, data.heldout_rows),
        seed=seed,
    )


def curate(
    recipe: str,
    scale: Scale,
    root: Path,
    out: Path,
    names: Sequence[str] = (),
    *,
    seed: int = 0,
    keep_going: bool = False,
    threads: int = 1,
) -> dict[str, Any]:
    """The sources through a recipe of `pipelines.RECIPES` into the folder `out`; the record of
    `engine.run`, whose errors it raises.
    """
    index, sets = evaluation_sets(root / "data_cards" / "instructions")
    print(f"evaluation sets looked for: {', '.join(sets)}")
    chosen = options(scale.data, index, seed)
    record = engine.run(
        recipe,
        RECIPES[recipe](chosen),
        inputs(names, scale.data, scale.hub, root, recipe),
        out,
        settings=recorded(chosen, sets),
        keep_going=keep_going,
        threads=threads,
    )
    sources = "".join(f" --source {name}" for name in names)
    command = f"moxin-lab curate {recipe} --scale {scale.name}{sources} --out {out.name}"
    (out / "README.md").write_text(funnel_page.page(out, command), encoding="utf-8")
    print(funnel.summary(out))
    return record


def recorded(chosen: Options, evaluation_sets: list[str]) -> dict[str, Any]:
    """The options as JSON has them."""
    values = chosen._asdict() | {"evaluation": evaluation_sets}
    values["heldout_bands"] = list(chosen.heldout_bands)
    return values | {"near": chosen.near._asdict(), "unfiltered": sorted(chosen.unfiltered)}


# ---- one document


def explain(folder: Path, document_id: str) -> str:
    """What became of a document, in a few lines: the side that it is on and the documents that were
    removed as copies of it, or the step that removed it and why.

    folder: the artifact `documents` of stage 01, or the folder of a finished `moxin-lab curate`.
    Raises CurationError if there is no such document, or no such folder.
    """
    found = next(_rows(folder, curated.SIDES, pc.field("id") == document_id), None)
    if found is None:
        raise CurationError(_not_found(folder, document_id))
    side, row = found
    about = ", ".join(f"{name} {row[name]}" for name in LABELS[1:] if row.get(name))
    lines = [f"{document_id}", f"  {about}"]
    if side != "removed":
        lines.append(f"  kept, in {side}: {row['num_bytes']:,} bytes of text")
        copies = _removed_for(folder, document_id)
        if copies:
            lines.append(f"  {len(copies):,} documents were removed because it stays, such as:")
            lines += [f"    {copy['id']}: {copy['detail']}" for copy in copies[:5]]
    else:
        lines.append(f"  removed by the step {row['step']!r}: {row['reason']}")
        lines.append(f"  {row['detail']}")
    return "\n".join(lines)


def _removed_for(folder: Path, document_id: str) -> list[dict[str, Any]]:
    detail = pc.field("detail")
    copy = detail == f"copy of {document_id}"
    near = pc.starts_with(detail, f"{document_id} stays")
    straddling = detail == f"near-duplicate of {document_id}"
    rows = [row for _, row in _rows(folder, ["removed"], copy | near | straddling)]
    return sorted(rows, key=lambda row: row["id"])


def _rows(folder: Path, sides: Sequence[str], condition: Any) -> Iterator[tuple[str, Any]]:
    """The rows of these sides that meet the condition, without their text."""
    for side in sides:
        for data in _datasets(folder, side):
            names = [name for name in data.schema.names if name != "text"]
            for row in data.to_table(columns=names, filter=condition).to_pylist():
                yield side, row


def _datasets(folder: Path, side: str) -> Iterator[Any]:
    """The shards of a side; what the step "reading" removed of the declaration lies apart."""
    places = [folder, folder / "udhr"] if side == "removed" else [folder]
    for place in places:
        try:
            paths = curated.paths(place, side)
        except FileNotFoundError:
            continue
        yield pyarrow.dataset.dataset(list(map(str, paths)))


def _not_found(folder: Path, document_id: str) -> str:
    known = [data for side in curated.SIDES for data in _datasets(folder, side)]
    if not known:
        return (
            f"{folder} has no curated documents: run `moxin-lab run --only 01`, or name the folder "
            "of a `moxin-lab curate`"
        )
    ids = [key for data in known for key in data.head(1, columns=["id"])["id"].to_pylist()]
    hint = f"an id looks like {ids[0]!r}" if ids else "it keeps none"
    return f"no document {document_id!r} in {folder}; {hint}"
