"""The report: `reports/<scale>/index.html`, one page per stage, and the documents, from executed
notebooks, stage records and files of the repository.

    build_site(root, "tiny")       # path of the index

    python -m moxin_lab.lab.site . tiny        # the same, and what it took

Guarantees: a page is one file with its style inside, runs no script, loads nothing (each page's
Content-Security-Policy makes the browser enforce it), and shows a failed stage's error at its top.
A page whose notebook is older than the stage's result says so. The same notebooks and records give
the same bytes: times, machine and commit come from the records only. Optional fields that a record
lacks are omitted.
Out of scope: running anything, and deciding a verdict. `cells.py` renders a notebook's cells,
`front_page.py` and `documents.py` the other pages; `templates/` holds the layout.
"""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moxin_lab.lab import (
    claims,
    documents,
    front_page,
    glossary,
    layout,
    nearest_evidence,
    provenance,
)
from moxin_lab.lab.artifacts import (
    MAX_NOTEBOOK_BYTES,
    LabError,
    read_json,
    read_record,
    stage_folder,
)
from moxin_lab.lab.layout import NavItem
from moxin_lab.stages import STAGES, StageInfo

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """What a stage's page is made of: its state, the executed notebook if there is one, and the
    record that belongs to that notebook if there is one.
    """

    state: str
    notebook: Path | None
    record: Record | None


def build_site(root: Path, scale: str) -> Path:
    """Write all pages of a scale from the files under `runs/<scale>`; path of the index.

    Pages that have nothing to show any more are removed. Raises LabError for a malformed record,
    notebook or claims file.
    """
    out = root / "reports" / scale
    records = {info.name: read_record(root, scale, info.name) for info in STAGES}
    sources = {info.name: _source(root, scale, info, records[info.name]) for info in STAGES}
    nav = [
        NavItem(
            info.name,
            info.title,
            f"{info.name}.html" if sources[info.name].notebook else None,
            sources[info.name].state,
        )
        for info in STAGES
    ]
    shared: dict[str, Any] = {"scale": scale, "nav": nav, "documents": documents.listed(root, out)}
    finished = [r for name, r in records.items() if r and sources[name].state != "failed"]
    nearest = nearest_evidence.beside(root, finished)
    minutes = {
        name: stage_page(
            source.notebook,
            out / f"{name}.html",
            source=source,
            name=name,
            nearest=nearest,
            root=root,
            **shared,
        )
        for name, source in sources.items()
        if source.notebook is not None
    }
    index = out / "index.html"
    front_page.write(
        index, shared=shared, records=records, minutes=minutes, nearest=nearest, root=root
    )
    written = {
        index,
        *documents.write(root, out, shared),
        *(out / f"{name}.html" for name in minutes),
    }
    for page in set(out.glob("*.html")) - written:
        page.unlink()
    return index


def _source(root: Path, scale: str, info: StageInfo, record: Record | None) -> Source:
    folder = stage_folder(root, scale, info.name)
    failed, finished = folder / "failed.ipynb", folder / "notebook.ipynb"
    if failed.exists():
        # a failed run's page must not carry the record of an earlier good one
        return Source("failed", failed if _is_whole(failed) else None, None)
    if (record or {}).get("state") == "failed":
        return Source("failed", finished, record)
    if record is None:
        return Source("not run", None, None)
    if record["key"] is None:
        # run by hand: the notebook beside the record is of an older result
        return Source("run by hand", finished if finished.exists() else None, None)
    if not finished.exists():
        return Source("run by hand", None, None)
    return Source("done", finished, record)


def _is_whole(notebook: Path) -> bool:
    """False for what a kill in the middle of a write, or a full disk, leaves."""
    try:
        read_json(notebook, max_bytes=MAX_NOTEBOOK_BYTES)
    except LabError:
        return False
    return True


def stage_page(
    executed_notebook: Path,
    out_html: Path,
    *,
    source: Source,
    name: str,
    nearest: nearest_evidence.Beside,
    root: Path,
    scale: str,
    nav: Sequence[NavItem],
    documents: Sequence[Any],
) -> int:
    """One executed notebook as a page; minutes that its prose takes to read. Raises LabError if the
    file is not a notebook. nearest: shown beside claims that the stage leaves open.
    """
    from moxin_lab.lab.cells import render_notebook

    cells = _cells(executed_notebook, scale, name)
    item = next(item for item in nav if item.name == name)
    rendered = render_notebook(
        {"cells": cells},
        item.title,
        link=lambda address: layout.inside(address, {each.name: each.href for each in nav}),
        shorten=lambda text: layout.presentable(text, root),
    )
    record = source.record or {}
    body = link_claims(glossary.explain(rendered.html), _claim_ids(root))
    minutes = layout.reading_minutes(body)
    failed = source.state == "failed"
    verdicts = _verdicts(record, cells, nearest)
    headings = [heading for heading in rendered.headings if heading[0] in (2, 3)]
    layout.write_page(
        out_html,
        "stage.html.j2",
        scale=scale,
        nav=nav,
        documents=documents,
        kind="stage",
        here=name,
        page_title=f"{rendered.title} ({scale} scale), Moxin Lab",
        title_html=layout.markup(rendered.title_html),
        title_anchor=rendered.title_anchor,
        contents=[*headings, *([(2, "verdicts", "Verdicts of this stage")] if verdicts else [])],
        facts=[*provenance.facts(record, scale, source.state), f"{minutes} min to read"],
        failed=failed,
        stale=source.state == "run by hand",
        failure=rendered.failure,
        number=item.number,
        body=layout.markup(body),
        verdicts=verdicts,
        record=record,
        provenance=provenance.provenance(record),
        measures=[provenance.measure_row(measure) for measure in record.get("measures", [])],
        files=provenance.files(record),
        folded=provenance.folded(record),
        **_turn(nav, name),
    )
    return minutes


def link_claims(html: str, known: frozenset[str]) -> str:
    """The ids of claims in the text lead to their rows of the front page."""

    def linked(found: re.Match[str]) -> str:
        if found[1] not in known:
            return found[0]
        return f'<a href="index.html#claim-{found[1]}">{found[0]}</a>'

    return re.sub(r"(?<!<pre>)<code>([a-z0-9.\-]+)</code>(?!</a>)", linked, html)


def _cells(path: Path, scale: str, name: str) -> list[dict[str, Any]]:
    remedy = f"delete it and run the stage again: moxin-lab run --scale {scale} --only {name[:2]}"
    notebook = read_json(path, remedy, max_bytes=MAX_NOTEBOOK_BYTES)
    if not isinstance(notebook, dict) or not isinstance(cells := notebook.get("cells"), list):
        raise LabError(f"{path} is not a notebook: it has no list `cells`; {remedy}")
    return cells


def _claim_ids(root: Path) -> frozenset[str]:
    if not (root / "papers" / "claims.yml").exists():
        return frozenset()
    return frozenset(entry["id"] for entry in claims.load(root))


def _verdicts(
    record: Record, cells: Sequence[Mapping[str, Any]], nearest: nearest_evidence.Beside
) -> list[dict[str, Any]]:
    """Verdicts that the stage recorded, each with the anchor of the cell that decided it: the last
    code cell that names the claim, else the last one that records claims; an open claim with the
    nearest evidence.
    """
    code = {
        f"cell-{number}": "".join(cell["source"])
        for number, cell in enumerate(cells, 1)
        if cell["cell_type"] == "code"
    }
    recording = [anchor for anchor, text in code.items() if "stage.claim(" in text]
    rows = []
    for claim in record.get("claims", []):
        naming = [anchor for anchor, text in code.items() if claim["id"] in text]
        rows.append(
            {
                "id": claim["id"],
                "verdict": claim["verdict"],
                "evidence": claim.get("evidence", ""),
                "cell": next(iter([*naming[::-1], *recording[::-1]]), ""),
                "nearest": nearest.get(claim["id"], ()) if claim["verdict"] in claims.OPEN else (),
            }
        )
    return rows


def _turn(nav: Sequence[NavItem], name: str) -> dict[str, NavItem | None]:
    """The pages before and after a stage's."""
    paged = [item for item in nav if item.href]
    position = next(i for i, item in enumerate(paged) if item.name == name)
    return {
        "previous": paged[position - 1] if position else None,
        "following": paged[position + 1] if position + 1 < len(paged) else None,
    }


def main(root: Path, scale: str) -> str:
    """Build the pages and say how many they are and what they took: seconds of the processor, which
    other work on the machine does not lengthen, and of the clock.
    """
    began, on_the_clock = time.process_time(), time.monotonic()
    index = build_site(root, scale)
    seconds, passed = time.process_time() - began, time.monotonic() - on_the_clock
    pages = len(list(index.parent.glob("*.html")))
    return (
        f"{index}: {pages} pages in {seconds:.1f} s of the processor, {passed:.1f} s by the clock"
    )


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2]))
