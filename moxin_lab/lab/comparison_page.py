"""A comparison of two runs as a reader gets it: text, JSON, and a page in the look of the site.

    write(found, out)                # out.html and, beside it, out.json
    in_text(found)                   # for a terminal

Guarantees: the page is one file, runs no script and leads nowhere, so it can lie anywhere; it holds
no path of this machine; the JSON has every value unrounded.
Out of scope: what differs (`comparison.py`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moxin_lab.lab import layout
from moxin_lab.lab.artifacts import LabError, write_atomically, write_json
from moxin_lab.lab.comparison import (
    BARE,
    IN_WORDS,
    INSIDE,
    MEET,
    NOT_RECORDED,
    OUTSIDE,
    SAME,
    Comparison,
    Pair,
    Run,
    in_words,
)
from moxin_lab.lab.show import format_number, format_value
from moxin_lab.stages import STAGES

CLOCK = "clock"
LINES = 20
"""Most measures that a terminal shows; our choice."""
SHOWN = 24
"""Most measures in the figure, those with the largest difference; our choice."""


def in_text(found: Comparison) -> str:
    """What a terminal shows: measures beyond their intervals, verdicts, and the summary."""
    beyond = [p for p in found.pairs if p.relation in (OUTSIDE, BARE) and not p.of_the_clock]
    lines = [
        f"{row['stage']} {row['measure']}: {row['a']} -> {row['b']} {row['unit']} "
        f"({row['difference']})"
        for row in _rows(beyond)
    ]
    if len(lines) > LINES:
        lines[LINES:] = [f"and {len(lines) - LINES} more measures, all on the page"]
    lines += [
        f"verdict of {claim}: {a} -> {b}"
        for claim, a, b in found.verdicts
        if NOT_RECORDED not in (a, b)
    ]
    return "\n".join([*lines, f"{found.a.name} and {found.b.name}: {found.summary()}"])


def default_page(root: Path, found: Comparison) -> Path:
    """`reports/comparisons/A--B.html`, named after the two runs."""
    names = [re.sub(r"\W+", "-", run.name).strip("-") or "here" for run in (found.a, found.b)]
    return root / "reports" / "comparisons" / f"{'--'.join(names)}.html"


def write(found: Comparison, out: Path) -> Path:
    """Write the page, and the same as JSON beside it; path of the page. Raises LabError if `out`
    does not end in .html or the folder cannot be written.
    """
    if out.suffix != ".html":
        raise LabError(f"{out}: the page is an HTML file; give a name that ends in .html")
    try:
        write_json(out.with_suffix(".json"), as_json(found))
        write_atomically(out, page(found))
    except OSError as error:
        raise LabError(f"cannot write {out}: {error.strerror}; give another with --out") from error
    return out


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison with unrounded values and no path of this machine."""
    return {
        "a": found.a.name,
        "b": found.b.name,
        "summary": found.summary(),
        "measures": [
            {
                "stage": p.stage,
                "name": p.name,
                "labels": dict(p.labels),
                "unit": p.unit,
                "a": p.a,
                "b": p.b,
                "interval_a": p.interval_a,
                "interval_b": p.interval_b,
                "difference": p.difference,
                "relation": p.relation,
                "of_the_clock": p.of_the_clock,
            }
            for p in found.pairs
        ],
        "only": _named(("run", "stage", "measure", "value"), found.only),
        "verdicts": _named(("claim", "a", "b"), found.verdicts),
        "artifacts": _named(("stage", "artifact", "a", "b"), found.artifacts),
        "settings": _named(("stage", "difference"), found.settings),
    }


def _named(fields: Sequence[str], rows: Iterable[tuple[str, ...]]) -> list[dict[str, str]]:
    return [dict(zip(fields, row, strict=True)) for row in rows]


def page(found: Comparison) -> str:
    """The comparison as a page of the site; it links to no other page, so it can lie anywhere."""
    groups = [
        (relation, words, _rows(pairs))
        for relation, words in IN_WORDS.items()
        if (pairs := [p for p in found.related(relation) if not p.of_the_clock])
    ]
    clock = _rows([pair for pair in found.pairs if pair.of_the_clock and pair.relation != SAME])
    sections = (
        ("figure", "The largest differences", bool(_in_figure(found))),
        *((relation, words.split(":")[0].capitalize(), True) for relation, words, _ in groups),
        ("clock", "Times and rates", clock),
        ("only", "Measures of one run only", found.only),
        ("verdicts", "Verdicts that differ", found.verdicts),
        ("artifacts", "Artifacts that differ", found.artifacts),
        ("settings", "What was set differently", True),
    )
    return layout.rendered(
        "compare.html.j2",
        scale=" and ".join(sorted({_scale(found.a), _scale(found.b)})),
        nav=[],
        documents=[],
        kind="document",
        here="compare",
        page_title=f"{found.a.name} and {found.b.name} compared, Moxin Lab",
        contents=[(2, anchor, title) for anchor, title, there in sections if there],
        found=found,
        runs=[("A", found.a.name, _about(found.a)), ("B", found.b.name, _about(found.b))],
        counts=_counts(found),
        groups=groups,
        clock=clock,
        figure=layout.markup(_figure(found)) if _in_figure(found) else "",
        same_scale=_scale(found.a) == _scale(found.b),
    )


def _scale(run: Run) -> str:
    return next(iter(run.records.values()))["scale"]


def _about(run: Run) -> str:
    """Scale, seeds, commit, and when the last stage finished."""
    records = list(run.records.values())
    seeds = ", ".join(sorted({str(record.get("seed")) for record in records}))
    commits = {str((r.get("environment") or {}).get("git_commit") or "unknown") for r in records}
    finished = max((str(record.get("finished_at") or "") for record in records), default="")
    return (
        f"{_scale(run)} scale, {len(records)} stages, seed {seeds}, commit "
        f"{', '.join(sorted(commit[:12] for commit in commits))}, finished {finished}"
    )


def _counts(found: Comparison) -> list[tuple[str, list[int]]]:
    """Measures by stage (rows) and relation (columns, in the order of `IN_WORDS`), those of the
    clock apart in the last column.
    """
    stages = [info.name for info in STAGES]
    pairs = Counter(
        (pair.stage, CLOCK if pair.of_the_clock else pair.relation) for pair in found.pairs
    )
    rows = [(stage, [pairs[stage, column] for column in (*IN_WORDS, CLOCK)]) for stage in stages]
    return [(stage.replace("_", " "), counts) for stage, counts in rows if any(counts)]


def _rows(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    ordered = sorted(pairs, key=lambda pair: -abs(pair.half_widths or 0.0))
    return [
        {
            "stage": pair.stage[:2],
            "measure": in_words({"name": pair.name, "labels": pair.labels}),
            "a": format_number(pair.a, pair.interval_a),
            "b": format_number(pair.b, pair.interval_b),
            "difference": _signed(pair.difference),
            "share": ""
            if pair.a == 0
            else f"{pair.difference / abs(pair.a):+.1%}".replace("-", "−"),
            "unit": pair.unit,
        }
        for pair in ordered
    ]


def _signed(number: float) -> str:
    text = format_number(float(number)) if isinstance(number, float) else format_value(number)
    return text if number <= 0 else f"+{text}"


def _in_figure(found: Comparison) -> list[Pair]:
    """Measures with intervals whose values differ, the largest difference first."""
    with_width = [p for p in found.pairs if p.half_widths and not p.of_the_clock]
    return sorted(with_width, key=lambda pair: -abs(pair.half_widths or 0.0))[:SHOWN]


def _figure(found: Comparison) -> str:
    """The differences in half widths of the wider interval, as a dot each."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from moxin_lab.lab import show

    pairs = _in_figure(found)
    with plt.rc_context():
        show.style()
        figure, axes = plt.subplots(figsize=(show.PHONE_WIDTH, 1.5 + 0.42 * len(pairs)))
        axes.axvspan(-1, 1, color="#e8e8e8", zorder=0)
        axes.axvline(0, color="#777777", linewidth=0.8)
        looks = {OUTSIDE: ("D", "#D55E00"), MEET: ("s", "#E69F00"), INSIDE: ("o", "#0072B2")}
        for relation, (marker, color) in looks.items():
            rows = [(p.half_widths, y) for y, p in enumerate(pairs) if p.relation == relation]
            if rows:
                label = IN_WORDS[relation].split(":")[0].split(",")[0]
                axes.scatter(
                    [x for x, _ in rows],
                    [y for _, y in rows],
                    marker=marker,
                    color=color,
                    s=34,
                    label=label,
                    zorder=3,
                )
        # above its dot: beside it a long name would leave a telephone no room for the dots
        at_the_left = axes.get_yaxis_transform()
        for place, pair in enumerate(pairs):
            axes.text(0, place - 0.42, _short(pair), transform=at_the_left, va="center")
        axes.set_yticks([])
        axes.set(ylim=(len(pairs) - 0.6, -0.8))
        axes.set_xlabel("B minus A, in half widths of the wider interval\n(grey: within one)")
        figure.legend(loc="outside upper left", ncols=3)
        largest = pairs[0]
        alt = (
            f"{len(pairs)} measures with their difference in half widths of the wider interval. "
            f"The largest is {_short(largest)} with {largest.half_widths:+.1f}."
        )
        caption = f"The {len(pairs)} largest differences of measures that have an interval"
        html = show.figure_html(figure, alt=alt, caption=caption, scale="")
        plt.close(figure)
    return html


def _short(pair: Pair) -> str:
    words = f"{pair.stage[:2]} {in_words({'name': pair.name, 'labels': pair.labels})}"
    return words if len(words) <= 58 else f"{words[:57]}…"
