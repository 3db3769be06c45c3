"""What a notebook shows: figures with a text alternative, tables that a screen reader can
read cell by cell, short Markdown.

Guarantees: the same figure or frame gives the same bytes (fixed salt, no dates, ids made from the
content); every figure and table carries its caption and its scale; nothing refers to an address
outside the page. The HTML reads well in JupyterLab and is styled further by the report site.
matplotlib, pandas and IPython are imported when first used, not before.

Out of scope: what to plot, and saving files.
"""

import math
import time
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from moxin_lab.lab import pictures
from moxin_lab.lab.pictures import SVG_SETTINGS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Colours that stay distinct with every common colour-vision deficiency. Source: Okabe and Ito,
Color Universal Design (2008); those that read best on white come first, yellow last.
"""

CLOCK = "of_the_clock"
"""Key of an output's metadata: a clock decides what it shows, so that equal runs differ in it."""
PHONE_WIDTH = 5.4
"""Inches: letters of 11 points in a figure this wide have 10 pixels on a telephone (380 pixels)."""
GROUPED_FROM = 1_000
"""Numbers from here on have a comma between thousands, in tables as in figures (`{:,}`)."""
WRAP_FROM = 28
"""Characters: a column with a longer text wraps, any other stays on one line. Our choice."""


def style() -> None:
    """Set matplotlib's defaults, once per notebook: palette, sizes that stay readable on a narrow
    page, a light frame.
    """
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            **SVG_SETTINGS,
            "axes.prop_cycle": cycler(color=OKABE_ITO),
            # points that a line of thousands of steps may be off by, which nobody sees
            "path.simplify_threshold": 0.4,
            # inches; as wide as the report's text column
            "figure.figsize": (7.0, 3.8),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.size": 11,
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica Neue", "Arial", "sans-serif"],
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#555555",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.7,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": True,
            # a curve behind the legend must not make it unreadable
            "legend.framealpha": 0.85,
            "legend.edgecolor": "none",
            "lines.linewidth": 1.8,
        }
    )


def figure_html(fig: "Figure", *, alt: str, caption: str, scale: str) -> str:
    """A matplotlib figure as one `<figure>`: an image described by `alt`, and a caption that ends
    with the scale, if that is not empty.

    Raises ValueError if `alt` or `caption` is empty. Warns about an SVG above
    `pictures.LARGE_FIGURE`.
    """
    for name, text in (("alt", alt), ("caption", caption)):
        if not text.strip():
            raise ValueError(f"show_figure needs {name}=...: say in words what the picture shows")
    return (
        f'<figure class="moxin-figure">'
        f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(caption)}">'
        f"{pictures.image(pictures.figure_svg(fig, caption), alt)}</div>"
        f"<figcaption>{escape(caption)}{_badge(scale)}</figcaption></figure>"
    )


def table_html(
    frame: "pd.DataFrame", *, caption: str, scale: str, decimals: int | dict[str, int] = 3
) -> str:
    """A DataFrame as one captioned table: header cells with their scope, numbers aligned right.

    decimals: digits after the point, one number for all columns or one per column (others: 3).

    The index becomes the row headers if it is named or holds words; otherwise the first column does
    if it holds text. Raises ValueError if `caption` is empty or the frame has no rows.
    """
    import pandas as pd

    if not caption.strip():
        raise ValueError("show_table needs caption=...: say in words what the table shows")
    if frame.empty:
        raise ValueError(f"the table {caption!r} has no rows; show a sentence that says so instead")
    index = frame.index
    if (
        any(name is not None for name in index.names)
        or index.nlevels > 1
        or not pd.api.types.is_numeric_dtype(index)
    ):
        names = [str(name) if name is not None else "" for name in frame.index.names]
        num_headers = frame.index.nlevels
        columns = [(name, list(frame.index.get_level_values(i))) for i, name in enumerate(names)]
    else:
        num_headers = 0 if pd.api.types.is_numeric_dtype(frame.iloc[:, 0]) else 1
        columns = []
    columns += [(_label(name), list(frame.iloc[:, i])) for i, name in enumerate(frame.columns)]

    # thousands are separated in all numbers of a column or in none
    grouped = [
        any(_is_number(value) and abs(value) >= GROUPED_FROM for value in values)
        for _, values in columns
    ]
    wide = [
        any(isinstance(value, str) and len(value) > WRAP_FROM for value in values)
        for _, values in columns
    ]
    numeric = [
        all(_is_number(value) or _is_missing(value) for value in values) for _, values in columns
    ]
    head = "".join(
        f'<th scope="col" {_align(right)}>{escape(name)}</th>' if name else "<td></td>"
        for (name, _), right in zip(columns, numeric, strict=True)
    )
    rows = []
    for row in zip(*(values for _, values in columns), strict=True):
        cells = []
        for i, value in enumerate(row):
            digits = decimals.get(columns[i][0], 3) if isinstance(decimals, dict) else decimals
            text = escape(format_value(value, digits, grouped=grouped[i]))
            kind = 'th scope="row"' if i < num_headers else "td"
            wrap = ' class="wrap"' if wide[i] else ""
            cells.append(
                f"<{kind}{wrap} {_align(numeric[i] and i >= num_headers)}>{text}</{kind[:2]}>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="moxin-table"><caption style="text-align:left">{escape(caption)}'
        f"{_badge(scale)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def figure_output(
    fig: "Figure", *, alt: str, caption: str, scale: str, clock: bool = False
) -> None:
    """Display `figure_html` in the notebook and close the figure, so that it is neither shown twice
    nor kept in memory. clock: a clock decides what it shows, so that equal runs differ in it.
    """
    import matplotlib.pyplot as plt

    html = figure_html(fig, alt=alt, caption=caption, scale=scale)
    plt.close(fig)
    _display(html, f"[{caption}{_in_brackets(scale)}] {alt}", clock)


def table_output(
    frame: "pd.DataFrame",
    *,
    caption: str,
    scale: str,
    decimals: int | dict[str, int] = 3,
    clock: bool = False,
) -> None:
    """Display `table_html` in the notebook; clock as in `figure_output`."""
    html = table_html(frame, caption=caption, scale=scale, decimals=decimals)
    _display(html, f"{caption}{_in_brackets(scale)}\n{frame.to_string()}", clock)


def html_output(html: str, plain: str) -> None:
    """Display HTML, and `plain` where a viewer shows text only."""
    _display(html, plain)


class Line(NamedTuple):
    """A line that a running cell rewrites: which cell, since when, and IPython's handle."""

    cell: int
    began: float
    handle: Any


def progress_line(line: Line | None, step: int, total: int, text: str) -> Line | None:
    """Show or rewrite the line of the running cell: what, how far, and for how long. None where no
    cell is running.
    """
    from IPython import get_ipython
    from IPython.display import display

    shell = get_ipython()
    if shell is None:
        return None
    same_cell = line is not None and line.cell == shell.execution_count
    began = line.began if line is not None and same_cell else time.monotonic()
    shown = f"{text} {step:,} of {total:,}, {format_seconds(time.monotonic() - began)}".strip()
    bundle = {"text/plain": shown}
    if line is not None and same_cell:
        line.handle.update(bundle, raw=True)
        return line
    return Line(shell.execution_count, began, display(bundle, raw=True, display_id=True))


def say(markdown: str, *, clock: bool = False) -> None:
    """Display Markdown: a sentence whose numbers were computed in the cell; clock as in
    `figure_output`.
    """
    from IPython.display import Markdown, display

    display(Markdown(markdown, metadata=_metadata(clock)))


def format_value(value: Any, decimals: int = 3, *, grouped: bool | None = None) -> str:
    """One table cell as text, with true minus signs and a dash for a missing value.

    grouped: separate thousands (None: from 1,000 on, as figures do). A number that would round to
    zero keeps two digits and an exponent, so that a small number is never printed as 0.
    """
    if _is_missing(value):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return "yes" if value else "no"
    if not _is_number(value):
        return str(value)
    number = value.item() if hasattr(value, "item") else value
    comma = "," if (abs(number) >= GROUPED_FROM if grouped is None else grouped) else ""
    if isinstance(number, int):
        text = f"{number:{comma}}"
    elif math.isinf(number):
        text = "∞" if number > 0 else "-∞"
    elif number != 0 and round(number, decimals) == 0:
        text = f"{number:.1e}"
    else:
        text = f"{number:{comma}.{decimals}f}"
    return text.replace("-", "−")


def format_number(value: Any, interval: tuple[float, float] | None = None) -> str:
    """A measured number with four significant digits, integers in full, and the interval to the
    same decimal place.
    """
    decimals = 3
    if isinstance(value, float) and math.isfinite(value):
        decimals = min(
            6, max(1 if abs(value) < 1000 else 0, 3 - math.floor(math.log10(abs(value) or 1)))
        )
        if value.is_integer():
            decimals = min(decimals, 1)
    text = format_value(value, decimals)
    if interval is None:
        return text
    low, high = (format_value(float(end), decimals) for end in interval)
    return f"{text} [{low}, {high}]"


def format_seconds(seconds: float | None) -> str:
    """A duration in seconds, minutes or hours; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(size: float | None) -> str:
    """A size in binary units with three significant digits; empty for None and 0."""
    if not size:
        return ""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return (
        f"{size:.0f} {unit}"
        if unit == "bytes" or size >= 100
        else f"{size:.{1 if size >= 10 else 2}f} {unit}"
    )


def _display(html: str, plain: str, clock: bool = False) -> None:
    from IPython.display import display

    display({"text/html": html, "text/plain": plain}, raw=True, metadata=_metadata(clock))


def of_the_clock(output: Mapping[str, Any]) -> bool:
    """Whether an output of an executed notebook was shown with `clock=True`; metadata of a sentence
    is kept by the kernel under its type.
    """
    metadata = output.get("metadata") or {}
    return bool(metadata.get(CLOCK) or (metadata.get("text/markdown") or {}).get(CLOCK))


def _metadata(clock: bool) -> dict[str, Any]:
    return {CLOCK: True} if clock else {}


def _badge(scale: str) -> str:
    """The scale's label behind a caption; nothing for what has no scale, such as a document."""
    return f' <span class="scale">{escape(scale)} scale</span>' if scale else ""


def _in_brackets(scale: str) -> str:
    return f" ({scale} scale)" if scale else ""


def _label(name: Any) -> str:
    return (
        " · ".join(str(part) for part in name if str(part))
        if isinstance(name, tuple)
        else str(name)
    )


def _align(right: bool) -> str:
    return f'style="text-align:{"right" if right else "left"}"'


def _is_number(value: Any) -> bool:
    import numbers

    return isinstance(value, numbers.Number) and not isinstance(value, bool)


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and math.isnan(value))
    )
