"""The report: `reports/<scale>/index.html` and one page per stage, from executed notebooks and
stage records.

    build_site(root, "tiny")       # path of the index

Guarantees: a page is one file with its style inside, runs no script, loads nothing (each page's
Content-Security-Policy makes the browser enforce it), and shows a failed stage's error at its top.
The same notebooks and records give the same bytes: times, machine and commit come from the records
only. Optional fields that a record lacks are omitted.
Out of scope: running anything, and deciding a verdict. `cells.py` renders a notebook's cells;
`templates/` holds the layout.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moxin_lab import scales
from moxin_lab.lab import claims
from moxin_lab.lab.artifacts import (
    LabError,
    parse_yaml,
    read_json,
    read_record,
    stage_folder,
    write_atomically,
)
from moxin_lab.lab.show import format_bytes, format_number, format_seconds
from moxin_lab.stages import STAGES

HEADLINES_PER_STAGE = 6
"""Numbers of a stage on the front page; its own page has all."""
SCALE_NOTES = {
    "tiny": "Two processor cores, real text, minutes. It proves mechanisms and orderings, never "
    "the paper's numbers: no figure here may be compared with one from the paper without that "
    "label.",
    "small": "One GPU, real text, about ten minutes per stage. It shows trends at a size that the "
    "paper does not report; its numbers are not the paper's.",
    "full": "The paper's own sizes. Numbers here may be compared with the published ones, within "
    "the stated intervals.",
}


@dataclass(frozen=True)
class NavItem:
    """A stage in the site's navigation; `href` is None while it has no page."""

    name: str
    title: str
    href: str | None
    state: str
    """One of: done, failed, not run, run by hand."""

    @property
    def number(self) -> str:
        return self.name.split("_", 1)[0]


def build_site(root: Path, scale: str) -> Path:
    """Write all pages of a scale from the files under `runs/<scale>`; path of the index.

    Pages of stages that no longer have a notebook are removed. Raises LabError for a malformed
    record, notebook or claims file.
    """
    out = root / "reports" / scale
    records = {info.name: read_record(root, scale, info.name) for info in STAGES}
    nav, notebooks = [], {}
    for info in STAGES:
        folder = stage_folder(root, scale, info.name)
        failed, finished = folder / "failed.ipynb", folder / "notebook.ipynb"
        record = records[info.name]
        if failed.exists() or (record or {}).get("state") == "failed":
            state, notebook = "failed", failed if failed.exists() else finished
        elif record is None:
            state, notebook = "not run", None
        else:
            # a run by hand leaves a record without a key; the notebook beside it is of an older
            # result
            by_hand = record["key"] is None or not finished.exists()
            state, notebook = ("run by hand", None) if by_hand else ("done", finished)
        if notebook is not None:
            notebooks[info.name] = notebook
        href = f"{info.name}.html" if notebook is not None else None
        nav.append(NavItem(info.name, info.title, href, state))
    for item in nav:
        page = out / f"{item.name}.html"
        if item.name not in notebooks:
            page.unlink(missing_ok=True)
            continue
        failed_run = item.state == "failed"
        # a failed run's page must not carry the record of an earlier good one
        record = None if notebooks[item.name].name == "failed.ipynb" else records[item.name]
        stage_page(
            notebooks[item.name],
            page,
            record=record,
            nav=nav,
            failed=failed_run,
            scale=scale,
            name=item.name,
            root=root,
        )
    index = out / "index.html"
    index_page(index, scale=scale, nav=nav, records=records, root=root)
    return index


def stage_page(
    executed_notebook: Path,
    out_html: Path,
    *,
    record: Mapping[str, Any] | None,
    nav: Sequence[NavItem],
    failed: bool,
    scale: str,
    name: str,
    root: Path,
) -> None:
    """One executed notebook as a page. Raises LabError if the file is not a notebook."""
    from moxin_lab.lab.cells import render_notebook

    remedy = f"delete it and run the stage again: moxin-lab run --scale {scale} --only {name[:2]}"
    notebook = read_json(executed_notebook, remedy)
    if not isinstance(notebook, dict) or not isinstance(cells := notebook.get("cells"), list):
        raise LabError(f"{executed_notebook} is not a notebook: it has no list `cells`; {remedy}")
    here = next((i for i, item in enumerate(nav) if item.name == name), None)
    title = nav[here].title if here is not None else name
    hrefs = {item.name: item.href for item in nav}
    rendered = render_notebook(
        {"cells": cells},
        title,
        link=lambda address: _inside(address, hrefs),
        shorten=lambda text: _presentable(text, root),
    )
    paged = [item for item in nav if item.href]
    position = next((i for i, item in enumerate(paged) if item.name == name), None)
    record = record or {}
    html = _template("stage.html.j2").render(
        css=_css(),
        kind="stage",
        scale=scale,
        nav=nav,
        here=name,
        page_title=f"{rendered.title} ({scale} scale), Moxin Lab",
        title_html=_markup(rendered.title_html),
        title_anchor=rendered.title_anchor,
        contents=[h for h in rendered.headings if h[0] in (2, 3)],
        facts=_facts(record, scale, failed),
        failed=failed,
        failure=rendered.failure,
        number=name.split("_", 1)[0],
        body=_markup(rendered.html),
        previous=paged[position - 1] if position else None,
        following=paged[position + 1]
        if position is not None and position + 1 < len(paged)
        else None,
        record=record,
        provenance=_provenance(record),
        measures=[_measure_row(measure) for measure in record.get("measures", [])],
        files=_files(record),
        folded=_folded(record),
    )
    write_atomically(out_html, html)


def index_page(
    out_html: Path,
    *,
    scale: str,
    nav: Sequence[NavItem],
    records: Mapping[str, Mapping[str, Any] | None],
    root: Path,
) -> None:
    """The front page: stages, first numbers, claims, and how to reproduce and check all of it.

    A failed stage's earlier record is not shown.
    """
    done = [record for item in nav if (record := records.get(item.name)) and item.state != "failed"]
    rows = [_stage_row(item, records.get(item.name)) for item in nav]
    headlines = [
        {
            "href": item.href,
            "title": f"{item.number} {item.title}",
            "measures": [_measure_row(m) for m in _headline(record)],
        }
        for item in nav
        if (record := records.get(item.name)) and item.state != "failed" and record.get("measures")
    ]
    base = scales.load(scale, root).decides_as
    listed = (root / "papers" / "claims.yml").exists()
    judged = (
        [_claim_row(verdict, nav) for verdict in claims.verdicts(root, done, base)]
        if listed
        else []
    )
    decided = _grouped([row for row in judged if row["verdict"] != "not attempted"], "topic")
    open_claims = _grouped([row for row in judged if row["verdict"] == "not attempted"], "reason")
    counts = [
        (verdict, sum(row["verdict"] == verdict for row in judged)) for verdict in claims.VERDICTS
    ]
    html = _template("index.html.j2").render(
        css=_css(),
        kind="index",
        scale=scale,
        nav=nav,
        here=None,
        page_title=f"Moxin Lab: report at {scale} scale",
        contents=[
            (2, "stages", "Stages"),
            (2, "numbers", "Numbers"),
            (2, "claims", "Claims"),
            (2, "reproduce", "Reproduce it"),
            (2, "verify", "Check it"),
            *([(2, "data", "Data")] if (cards := _data_cards(root)) else []),
        ],
        scale_note=SCALE_NOTES.get(
            scale, f"It extends the {base} scale; its numbers are not the paper's."
        ),
        stages=rows,
        total_time=format_seconds(sum(r["seconds"] for r in done if r.get("seconds") is not None))
        if done
        else "",
        peak=format_bytes(max((r.get("peak_memory_bytes") or 0 for r in done), default=0)),
        headlines=headlines,
        decided=decided,
        open_claims=open_claims,
        claims_total=len(judged),
        counts=counts,
        deviations=len(claims.deviations(root))
        if (root / "papers" / "deviations.yml").exists()
        else 0,
        data_cards=cards,
        made_with=_made_with(done),
    )
    write_atomically(out_html, html)


# ---- rows


def _stage_row(item: NavItem, record: Mapping[str, Any] | None) -> dict[str, Any]:
    shown = record if record and item.state != "failed" else {}
    headline = _headline(shown)[:1]
    key_number = ""
    if headline:
        row = _measure_row(headline[0])
        labels = f" ({row['labels']})" if row["labels"] else ""
        key_number = f"{row['name']}{labels}: {row['value']} {row['unit']}".strip()
    return {
        "number": item.number,
        "title": item.title,
        "href": item.href,
        "state": item.state,
        "time": format_seconds(shown.get("seconds")),
        "memory": format_bytes(shown.get("peak_memory_bytes")),
        "key_number": key_number,
    }


def _headline(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Measures marked `headline`; without any, the first few of each name, so that one long series
    does not fill the list.
    """
    measures = record.get("measures", [])
    marked = [measure for measure in measures if measure.get("headline")]
    if marked:
        return marked[:HEADLINES_PER_STAGE]
    names = list(dict.fromkeys(measure["name"] for measure in measures))
    share = max(1, HEADLINES_PER_STAGE // max(1, len(names)))
    chosen = [m for name in names for m in [m for m in measures if m["name"] == name][:share]]
    return chosen[:HEADLINES_PER_STAGE]


def _measure_row(measure: Mapping[str, Any]) -> dict[str, str]:
    labels = ", ".join(f"{name} {label}" for name, label in (measure.get("labels") or {}).items())
    return {
        "name": str(measure["name"]).replace("_", " "),
        "labels": labels,
        "value": format_number(measure.get("value"), measure.get("interval")),
        "unit": str(measure.get("unit") or ""),
    }


def _claim_row(verdict: claims.Verdict, nav: Sequence[NavItem]) -> dict[str, Any]:
    """A claim with its notebook's name and page; evidence only where a notebook wrote it, for the
    title of a group says why the others are open.
    """
    stage = verdict.stage or verdict.tested_in
    item = next((item for item in nav if item.name == stage), None)
    return {
        **asdict(verdict),
        "evidence": verdict.evidence if verdict.stage else "",
        "notebook": f"{item.number} {item.title}" if item else stage.replace("_", " "),
        "href": item.href if item else None,
    }


def _grouped(rows: Sequence[dict[str, Any]], by: str) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    return list(groups.items())


# ---- provenance


def _facts(record: Mapping[str, Any], scale: str, failed: bool) -> list[str]:
    facts = [f"{scale} scale", "failed" if failed else "done"]
    if record.get("seed") is not None:
        facts.append(f"seed {record['seed']}")
    if record.get("seconds") is not None:
        facts.append(format_seconds(record["seconds"]))
    if record.get("peak_memory_bytes"):
        facts.append(f"peak memory {format_bytes(record['peak_memory_bytes'])}")
    return facts


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment = dict(record.get("environment") or {})
    environment.pop("packages", None)
    commit = environment.pop("git_commit", None)
    dirty = environment.pop("git_dirty", None)
    rows = [("Scale", record.get("scale")), ("Seed", record.get("seed"))]
    rows += [
        ("Time", format_seconds(record.get("seconds"))),
        ("Peak memory", format_bytes(record.get("peak_memory_bytes"))),
    ]
    rows += [("Finished", record.get("finished_at"))]
    if commit:
        rows.append(("Commit", f"{commit[:12]}{' with uncommitted changes' if dirty else ''}"))
    memory = environment.pop("memory_bytes", None)
    labels = {"cpu": "Processor", "gpu": "GPU", "python": "Python"}
    for name, value in environment.items():
        if not isinstance(value, dict | list):
            rows.append(
                (
                    labels.get(name, name.replace("_", " ").capitalize()),
                    "none" if name == "gpu" and not value else value,
                )
            )
    rows.append(("Memory", format_bytes(memory)))
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _files(record: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for role, kind in (("data card", "data_cards"), ("input", "inputs"), ("output", "outputs")):
        for name, about in (record.get(kind) or {}).items():
            maker = f"{role}, from {about['stage']}" if about.get("stage") else role
            rows.append(
                {
                    "name": name,
                    "role": maker,
                    "size": format_bytes(about.get("size")),
                    "sha256": about.get("sha256", ""),
                }
            )
    return rows


def _folded(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    packages = (record.get("environment") or {}).get("packages") or {}
    blocks = [
        (
            "Parameters and settings",
            {**(record.get("parameters") or {}), **(record.get("settings") or {})},
        ),
        ("Package versions", {name: version for name, version in packages.items() if version}),
    ]
    return [(name, _outline(content)) for name, content in blocks if content]


def _outline(content: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(
        json.loads(json.dumps(content, default=str)), sort_keys=False, allow_unicode=True, width=100
    ).strip()


def _data_cards(root: Path) -> list[dict[str, str]]:
    cards = []
    for readme in sorted((root / "data_cards").glob("*/README.md")):
        parts = readme.read_text(encoding="utf-8").split("---\n", 2)
        front = parse_yaml(parts[1], readme) if len(parts) == 3 and not parts[0].strip() else {}
        front = front if isinstance(front, dict) else {}
        licence = front.get("license_name") or front.get("license") or ""
        licence = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
        cards.append(
            {
                "name": readme.parent.name,
                "title": str(front.get("pretty_name") or ""),
                "license": licence,
            }
        )
    return cards


def _made_with(done: Sequence[Mapping[str, Any]]) -> str:
    commits = {
        commit[:12] for r in done if (commit := (r.get("environment") or {}).get("git_commit"))
    }
    if not commits:
        return "Made by moxin-lab from the stage records under runs/."
    plural = "s" if len(commits) > 1 else ""
    return f"Made by moxin-lab from stage records of commit{plural} {', '.join(sorted(commits))}."


# ---- plumbing


def _inside(address: str, hrefs: Mapping[str, str | None]) -> str | None:
    """Address in the site of another stage's notebook; None for any other file."""
    path, _, fragment = address.partition("#")
    href = hrefs.get(Path(path).stem) if Path(path).suffix in (".ipynb", ".html") else None
    return f"{href}#{fragment}" if href and fragment else href


def _presentable(text: str, root: Path) -> str:
    """Text without this machine's folders and without the kernel's temporary file names, which
    differ between equal runs.
    """
    text = text.replace(f"{root.resolve()}/", "").replace(str(Path.home()) + "/", "~/")
    return re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", text)


def _markup(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)


@cache
def _template(name: str) -> Any:
    import jinja2

    folder = Path(__file__).parent / "templates"
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template(name)


@cache
def _css() -> Any:
    return _markup((Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8"))
