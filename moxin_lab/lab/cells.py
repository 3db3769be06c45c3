"""Turns the cells of an executed notebook into HTML that needs no script and no network, and that a
screen reader can read.

Guarantees: mathematics becomes MathML; code and printed output are folded; every picture has a text
alternative; no element runs code or loads anything (`make_safe`); links that leave the site become
text with their address; the same notebook gives the same bytes. The Markdown is mistune's with
Jupyter's dollar mathematics and Jupyter's heading anchors, so a notebook reads here as it does in
JupyterLab. nbconvert is not used: importing it takes three seconds, half of the time that building
the site takes.

Out of scope: the layout of a page, and stages (see `site.py`).
"""

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

from moxin_lab.lab import pictures
from moxin_lab.lab.captions import (
    fold_long_tables,
    make_table_readable,
    number_captions,
    unique,
)

log = logging.getLogger(__name__)

PRINTED_LINES_KEPT = 20
"""Lines of printed output kept at each end of a long one; our choice."""

SHORT_VALUE_LINES = 12
"""A cell's value of fewer lines is shown, a longer one folded; our choice."""

VERDICTS_CAPTION = "Verdicts of this stage on published claims"
"""Of the table that `stage.finish()` shows."""

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_FORBIDDEN = (
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "meta",
    "base",
    "style",
    "form",
    "audio",
    "video",
    "title",
)
_ADDRESSES = (
    "src",
    "href",
    "xlink:href",
    "poster",
    "srcset",
    "action",
    "formaction",
    "data",
    "background",
    "ping",
)
_INLINE = ("#", "data:image/png", "data:image/jpeg")
"""Beginnings of addresses whose content is in the page itself."""


@dataclass
class Failure:
    """The exception that stopped a notebook."""

    anchor: str
    name: str
    message: str
    traceback: str


@dataclass
class Rendered:
    """A notebook as HTML, its headings for a table of contents, and what stopped it, if anything
    did.
    """

    title: str = ""
    title_html: str = ""
    title_anchor: str = ""
    html: str = ""
    """Everything but the H1."""
    headings: list[tuple[int, str, str]] = field(default_factory=list)
    """(level, id, text) in reading order, from level 2 down."""
    failure: Failure | None = None


def render_notebook(
    notebook: dict[str, Any],
    title: str,
    link: Callable[[str], str | None],
    shorten: Callable[[str], str] = str,
) -> Rendered:
    """An executed notebook (the parsed JSON, nbformat 4) as one HTML fragment.

    title: the H1 if the notebook has none. link: maps a relative address in the notebook to one in
    the site, or to None for what is not part of it. shorten: removes this machine's paths from
    text.
    """
    page = Rendered()
    parts: list[str] = []
    cells = notebook["cells"]
    for number, cell in enumerate(cells, 1):
        anchor = f"cell-{number}"
        if "papermill-error-cell-tag" in _tags(cell):
            continue  # papermill's own notice; the page has a better one at its top
        if "parameters" in _tags(cell) and "injected-parameters" in _tags(
            cells[min(number, len(cells) - 1)]
        ):
            continue  # the next cell sets all of them
        if cell["cell_type"] == "markdown":
            parts.append(
                f'<section class="words" id="{anchor}">'
                f"{markdown_html(_text(cell['source']))}</section>"
            )
        elif cell["cell_type"] == "code" and _text(cell["source"]).strip():
            parts.append(_code_cell(cell, number, anchor, page, shorten))
    page.html = _finish("\n".join(parts), title, link, page)
    return page


def markdown_html(text: str) -> str:
    """Markdown with dollar mathematics as HTML, not yet made safe."""
    return str(_markdown()(text))


def mathml(latex: str, display: str = "inline") -> str:
    """LaTeX as MathML whose text alternative is its source. What cannot be converted is shown as
    code, and logged.
    """
    from latex2mathml import exceptions
    from latex2mathml.converter import convert

    # the library's errors share no base class
    library_errors = [
        v for v in vars(exceptions).values() if isinstance(v, type) and issubclass(v, Exception)
    ]
    errors: Any = (*library_errors, ValueError, KeyError, IndexError, TypeError)
    latex = latex.strip()
    try:
        markup = convert(latex, display=display)
        unknown = re.search(r"<m[io]>(\\\w+)", markup)
        fault = f"unknown command {unknown[1]}" if unknown else ""
    except errors as error:
        fault = type(error).__name__
    if fault:
        log.warning("mathematics left as source (%s): %s", fault, latex)
        return f'<code class="math-source">{escape(latex)}</code>'
    markup = markup.replace(
        ' xmlns="http://www.w3.org/1998/Math/MathML"', f' alttext="{escape(latex)}"', 1
    )
    if display == "block":
        return (
            '<span class="math-block" role="group" tabindex="0" aria-label="formula">'
            f"{markup}</span>"
        )
    return markup


def code_html(code: str, language: str = "python") -> str:
    """Source code with pygments' short class names inside `<pre><code>`."""
    from pygments import highlight
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    body = highlight(
        code.rstrip("\n"), get_lexer_by_name(language), HtmlFormatter(nowrap=True)
    ).rstrip("\n")
    return f"<pre><code>{body}</code></pre>"


def plain(text: str) -> str:
    """Terminal text without colours, with each line as its last carriage return left it."""
    lines = _ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in lines).strip("\n")


@cache
def _markdown() -> Any:
    import mistune
    from mistune.plugins import math

    class Renderer(mistune.HTMLRenderer):
        def block_code(self, code: str, info: str | None = None) -> str:
            from pygments.util import ClassNotFound

            try:
                block = code_html(code, info.split()[0] if info else "text")
            except ClassNotFound:
                block = code_html(code, "text")
            return block.replace("<pre>", '<pre class="fence" tabindex="0">', 1)

    def jupyter_math(md: mistune.Markdown) -> None:
        # Jupyter lets $...$ run over a line's end, mistune's pattern does not
        inline = math.INLINE_MATH_PATTERN.replace(r"[^$\\\n]|\\.", r"[^$\\\n]|\\.|\n(?!\s*\n)")
        md.block.register(
            "block_math", math.BLOCK_MATH_PATTERN, math.parse_block_math, before="list"
        )
        md.inline.register("inline_math", inline, math.parse_inline_math, before="codespan")
        md.renderer.register("block_math", lambda _, latex: mathml(latex, "block"))  # type: ignore[union-attr]
        md.renderer.register("inline_math", lambda _, latex: mathml(latex))  # type: ignore[union-attr]

    plugins: list[Any] = [
        jupyter_math,
        math.math_in_list,
        math.math_in_quote,
        "table",
        "strikethrough",
        "def_list",
        "footnotes",
    ]
    return mistune.create_markdown(escape=False, renderer=Renderer(escape=False), plugins=plugins)


def _code_cell(
    cell: dict[str, Any], number: int, anchor: str, page: Rendered, shorten: Callable[[str], str]
) -> str:
    source = _text(cell["source"])
    tags = _tags(cell)
    is_parameters = bool(tags & {"parameters", "injected-parameters"})
    label = "Parameters" if is_parameters else "Code"
    if "bookkeeping" in tags:
        label = "Records and verdicts"
    summary = f'<summary>{label} <span class="where">cell {number}</span></summary>'
    parts = [f'<details class="code">{summary}{code_html(source)}</details>']
    printed: list[str] = []
    shown: list[str] = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            printed.append(_text(output["text"]))
        elif output["output_type"] == "error":
            traceback = shorten(plain("\n".join(output.get("traceback", []))))
            page.failure = Failure(
                anchor, output["ename"], shorten(plain(output["evalue"])), traceback
            )
            shown.append(
                f'<p class="stopped"><strong>Stopped here:</strong> {escape(output["ename"])}</p>'
            )
        else:
            shown.append(_rich_output(output, cell, number, shorten))
    text = shorten(plain("".join(printed)))
    if text:
        parts.append(_printed(text))
    if re.search(r"^\s*stage\.finish\(", source, re.MULTILINE) and shown and page.failure is None:
        # the page ends with the verdicts itself, with links, so the notebook's table is folded
        last = next((i for i, each in enumerate(shown) if VERDICTS_CAPTION in each), len(shown) - 1)
        folded = "".join(shown[last:])
        shown[last:] = [
            f"<details class='printed'><summary>End of the stage</summary>{folded}</details>"
        ]
    return f'<section class="work" id="{anchor}">{"".join(parts)}{"".join(shown)}</section>'


def _rich_output(
    output: dict[str, Any], cell: dict[str, Any], number: int, shorten: Callable[[str], str]
) -> str:
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""  # a progress bar: it needs a live kernel and says nothing afterwards
    if "text/html" in data:
        return f'<div class="output">{_text(data["text/html"])}</div>'
    if "image/svg+xml" in data:
        return f"<figure>{_text(data['image/svg+xml'])}</figure>"
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            about = output.get("metadata", {}).get(kind, {}).get("alt") or cell.get(
                "metadata", {}
            ).get("alt")
            alt = (
                about
                or f"Picture made by code cell {number}; the notebook gives no description of it."
            )
            content = "".join(_text(data[kind]).split())
            return f'<figure><img src="data:{kind};base64,{content}" alt="{escape(alt)}"></figure>'
    if "text/markdown" in data:
        return f'<div class="output words">{markdown_html(_text(data["text/markdown"]))}</div>'
    if "text/latex" in data:
        return f"<p>{mathml(_text(data['text/latex']).strip().strip('$'), 'block')}</p>"
    text = shorten(plain(_text(data.get("text/plain", ""))))
    short = text and text.count("\n") < SHORT_VALUE_LINES
    return f"<pre>{escape(text, quote=False)}</pre>" if short else _printed(text, "Value")


def _printed(text: str, label: str = "Printed") -> str:
    """Folded output; the middle of a long one is omitted here and kept in the notebook."""
    if not text:
        return ""
    lines = text.split("\n")
    count = f"{len(lines)} line{'s' if len(lines) > 1 else ''}"
    if len(lines) > 2 * PRINTED_LINES_KEPT + 1:
        hidden = len(lines) - 2 * PRINTED_LINES_KEPT
        lines[PRINTED_LINES_KEPT:-PRINTED_LINES_KEPT] = [f"[{hidden} lines omitted]"]
    body = escape(
        "\n".join(line if len(line) <= 400 else line[:400] + " [line cut]" for line in lines),
        quote=False,
    )
    return (
        f"<details class='printed'><summary>{label} <span class='where'>{count}</span></summary>"
        f"<pre>{body}</pre></details>"
    )


def make_safe(soup: Any, link: Callable[[str], str | None]) -> None:
    """Remove from a parsed fragment, in place, whatever could run or load something: elements,
    event handlers, addresses.
    """
    for element in soup.find_all(_FORBIDDEN):
        if element.name == "title" and element.find_parent("svg"):
            continue
        element.decompose()
    for element in soup.find_all(True):
        for name in list(element.attrs):
            value = str(element[name])
            if name.startswith(("on", "xmlns")) or (
                "url(" in value and not re.search(r"url\(['\"]?#", value)
            ):
                del element[name]
            elif element.name != "a" and name in _ADDRESSES and not value.startswith(_INLINE):
                log.warning(
                    "omitted from the page, because it would be loaded from elsewhere: %s",
                    value[:100],
                )
                del element[name]
    for image in soup.find_all("img"):
        if not image.get("src"):
            image.replace_with(
                f"[picture not part of this page: {image.get('alt') or 'no description'}]"
            )
        elif not image.get("alt"):
            image["alt"] = "Picture without a description."
    for svg in soup.find_all("svg"):
        if not (svg.get("aria-labelledby") or svg.get("aria-label") or svg.get("aria-hidden")):
            svg["role"], svg["aria-label"] = "img", "Picture without a description."
    for anchor in soup.find_all("a"):
        _resolve_link(anchor, link)


def _resolve_link(anchor: Any, link: Callable[[str], str | None]) -> None:
    target = str(anchor.get("href") or "")
    if target.startswith("#"):
        return
    external = bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", target))
    inside = None if external or not target else link(target)
    if inside:
        anchor["href"] = inside
        return
    address = target.removeprefix("mailto:")
    if address and address not in anchor.get_text():
        anchor.append(f" ({address})")
    anchor.unwrap()


def _finish(html: str, title: str, link: Callable[[str], str | None], page: Rendered) -> str:
    """Make the fragment safe, move its H1 to `page`, and give headings ids, table cells scopes and
    tables a container that scrolls.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(pictures.inlined(html), "html.parser")
    make_safe(soup, link)
    first = soup.find("h1")
    page.title, page.title_html = title, escape(title)
    if first is not None:
        page.title, page.title_html = (
            " ".join(first.get_text().split()),
            first.decode_contents().strip(),
        )
        first.decompose()
    page.title_anchor = page.title.replace(" ", "-")  # the anchor that JupyterLab uses
    used = {
        page.title_anchor,
        "main",
        "failure",
        "provenance",
        "verdicts",
        *(str(element["id"]) for element in soup.find_all(id=True)),
    }
    for heading in soup.find_all(re.compile(r"^h[1-6]$")):
        if heading.name == "h1":
            heading.name = "h2"
        text = " ".join(heading.get_text().split())
        heading["id"] = unique(text.replace(" ", "-"), used)
        page.headings.append((int(heading.name[1]), str(heading["id"]), text))
    for table in soup.find_all("table"):
        make_table_readable(table, soup)
    number_captions(soup, used)
    fold_long_tables(soup)
    return str(soup)


def _tags(cell: dict[str, Any]) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def _text(source: str | Iterable[str]) -> str:
    """nbformat keeps text as one string or as a list of lines."""
    return source if isinstance(source, str) else "".join(source)
