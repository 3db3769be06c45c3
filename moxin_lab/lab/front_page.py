"""The front page of the report: findings, the pipeline, stages, claims, and how to repeat, check
and cite all of it.

Guarantees: a failed stage's earlier record is not shown; numbers come from records and released
files only.
Out of scope: choosing the numbers (`findings.py`), drawing (`diagrams.py`, the templates).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moxin_lab import scales
from moxin_lab.lab import claims, diagrams, documents, findings, layout, nearest_evidence
from moxin_lab.lab.artifacts import read_yaml
from moxin_lab.lab.layout import NavItem
from moxin_lab.lab.provenance import made_with, measure_row
from moxin_lab.lab.show import format_bytes, format_seconds

SCALE_NOTES = {
    "tiny": "Two processor cores, real text, minutes. It proves mechanisms and orderings, never "
    "the paper's numbers: no figure here may be compared with one from the paper without that "
    "label.",
    "small": "One GPU, real text, about ten minutes per stage. It shows trends at a size that the "
    "paper does not report; its numbers are not the paper's.",
    "full": "The paper's own sizes. Numbers here may be compared with the published ones, within "
    "the stated intervals.",
}
Records = Mapping[str, Mapping[str, Any] | None]


def write(
    out_html: Path,
    *,
    shared: Mapping[str, Any],
    records: Records,
    minutes: Mapping[str, int],
    nearest: nearest_evidence.Beside,
    root: Path,
) -> None:
    """Write the front page.

    shared: what every page's template takes. minutes: reading time of each stage's page. nearest:
    of `nearest_evidence.beside`, shown beside claims without a verdict.
    """
    nav, scale = shared["nav"], shared["scale"]
    shown = {item.name: records.get(item.name) for item in nav if item.state != "failed"}
    done = [record for record in shown.values() if record]
    base = scales.load(scale, root).decides_as
    listed = (root / "papers" / "claims.yml").exists()
    judged = claims.verdicts(root, done, base) if listed else []
    related = documents.related(root, out_html.parent) if listed else {}
    rows = [
        {
            **claim_row(verdict, nav),
            "related": related[verdict.id],
            "nearest": nearest.get(verdict.id, ()) if verdict.verdict in claims.OPEN else (),
        }
        for verdict in judged
    ]
    cards = documents.data_cards(root)
    released = released_reports(root, out_html.parent)
    citation = cite(root, done)
    values: dict[str, Any] = {
        "scale_note": SCALE_NOTES.get(
            scale, f"It extends the {base} scale; its numbers are not the paper's."
        ),
        "findings": [
            (text, next((item for item in nav if item.name == stage), None))
            for text, stage in findings.findings(shown, root)
        ],
        "pipeline": [layout.markup(diagrams.pipeline(nav, columns)) for columns in (5, 2)],
        "speed": findings.speed_chart(root),
        "stages": [_stage_row(item, records, minutes) for item in nav],
        "total_time": format_seconds(
            sum(r["seconds"] for r in done if r.get("seconds") is not None)
        )
        if done
        else "",
        "peak": format_bytes(max((r.get("peak_memory_bytes") or 0 for r in done), default=0)),
        "numbers": _numbers(shown, root, nav),
        "released_note": findings.RELEASED_NOTE,
        "decided": _grouped([row for row in rows if row["verdict"] not in claims.OPEN], "verdict"),
        "open_claims": _grouped([row for row in rows if row["verdict"] in claims.OPEN], "reason"),
        "claims_total": len(rows),
        "counts": [(v, sum(row["verdict"] == v for row in rows)) for v in claims.VERDICTS],
        "released": released,
        "data_cards": cards,
        "citation": citation,
        "made_with": made_with(done),
    }
    values["contents"] = [
        (2, anchor, title)
        for anchor, title, there in (
            ("findings", "Findings", values["findings"]),
            ("pipeline", "The pipeline", True),
            ("speed", "Speed", values["speed"]),
            ("stages", "Stages", True),
            ("numbers", "Tiny beside small" if scale == "tiny" else "Numbers", True),
            ("claims", "Claims by verdict", True),
            ("released", "Released reports", released),
            ("reproduce", "Reproduce it", True),
            ("verify", "Check it", True),
            ("data", "Data", cards),
            ("cite", "Cite it", citation),
        )
        if there
    ]
    layout.write_page(
        out_html,
        "index.html.j2",
        **{
            **shared,
            "kind": "index",
            "here": None,
            "page_title": f"Moxin Lab: report at {scale} scale",
            **values,
        },
    )


# ---- rows


def claim_row(verdict: claims.Verdict, nav: Sequence[NavItem]) -> dict[str, Any]:
    """A claim with its notebook's name and page; evidence only where a notebook wrote it, or where
    no number could decide the words, for the title of a group says why the others are open.
    """
    stage = verdict.stage or verdict.tested_in
    item = next((item for item in nav if item.name == stage), None)
    return {
        **asdict(verdict),
        "evidence": verdict.evidence
        if verdict.stage or verdict.verdict == claims.NOT_TESTABLE
        else "",
        "notebook": f"{item.number} {item.title}" if item else stage.replace("_", " "),
        "href": item.href if item else None,
    }


def _stage_row(item: NavItem, records: Records, minutes: Mapping[str, int]) -> dict[str, Any]:
    record = records.get(item.name)
    shown = record if record and item.state != "failed" else {}
    return {
        "number": item.number,
        "title": item.title,
        "href": item.href,
        "state": item.state,
        "time": format_seconds(shown.get("seconds")),
        "memory": format_bytes(shown.get("peak_memory_bytes")),
        "reading": f"{minutes[item.name]} min" if item.name in minutes else "",
        "key_number": _key_number(item.name, shown),
    }


def _key_number(stage: str, record: Mapping[str, Any]) -> str:
    """The number chosen by hand; without one the first headline, or the first number."""
    if not record.get("measures"):
        return ""
    if chosen := findings.key_number({stage: record}, stage):
        return chosen
    measures = record["measures"]
    row = measure_row(next((m for m in measures if m.get("headline")), measures[0]))
    labels = f" ({row['labels']})" if row["labels"] else ""
    return f"{row['name']}{labels}: {row['value']} {row['unit']}".strip()


def _numbers(records: Records, root: Path, nav: Sequence[NavItem]) -> list[dict[str, Any]]:
    by_name = {item.name: item for item in nav}
    return [
        {**row, "number": by_name[row["stage"]].number, "href": by_name[row["stage"]].href}
        for row in findings.numbers(records, root)
        if row["stage"] in by_name
    ]


def _grouped(rows: Sequence[dict[str, Any]], by: str) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    if by == "verdict":
        return [(verdict, groups[verdict]) for verdict in claims.VERDICTS if verdict in groups]
    return list(groups.items())


# ---- what the repository has


def released_reports(root: Path, folder: Path) -> list[dict[str, str]]:
    """Folders of `reports/released`: path, title of the README, number of pages, and the link from
    a page in `folder` to its front page, or to its page if there is one alone.
    """
    rows = []
    for readme in sorted((root / "reports" / "released").glob("*/README.md")):
        text = readme.read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        pages = sorted(readme.parent.glob("*.html"))
        front = readme.with_name("index.html")
        if len(pages) == 1:
            [front] = pages
        rows.append(
            {
                "path": readme.parent.relative_to(root).as_posix(),
                "title": title[1].replace("`", "") if title else readme.parent.name,
                "href": os.path.relpath(front, folder) if front.exists() else "",
                "pages": str(len(pages)),
            }
        )
    return rows


def cite(root: Path, done: Sequence[Mapping[str, Any]]) -> str:
    """BibTeX from CITATION.cff, with the commit of the records if all have the same; empty without
    the file.
    """
    path = root / "CITATION.cff"
    if not path.exists():
        return ""
    about = read_yaml(path)
    authors = " and ".join(
        "{" + author["name"] + "}"
        if "name" in author
        else f"{author['family-names']}, {author['given-names']}"
        for author in about["authors"]
    )
    commits = {commit for r in done if (commit := (r.get("environment") or {}).get("git_commit"))}
    fields = {
        "author": authors,
        "title": "{" + about["title"] + "}",
        "year": str(about["date-released"])[:4],
        "date": str(about["date-released"]),
        "version": str(about["version"]),
        "url": str(about.get("repository-code") or about.get("url") or ""),
        "note": f"commit {commits.pop()[:12]}" if len(commits) == 1 else "",
    }
    lines = [f"  {name:7} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join(["@software{moxin_lab,", *lines, "}"])
