"""Pictures of matplotlib figures: an image in the notebook, inline SVG on a page of the site.

In a notebook a picture is `<img>` with its SVG as a data address. Viewers that do not trust a
notebook (JupyterLab without trust, code hosts) remove inline SVG and keep such an image. On a page
of the site the same SVG stands inline, so that its text can be found, scaled and read aloud.

Guarantees: the same figure gives the same bytes (fixed salt, no dates); `inlined` gives back the
very SVG that `image` was given, with ids that are unique on the page.
Out of scope: captions (`show`), and making foreign SVG safe (`cells.make_safe`).
"""

import base64
import html
import io
import itertools
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE_FIGURE = 150_000
"""Bytes of SVG; a report page with three such figures is near its limit of 500 kB. Our choice."""

SVG_SETTINGS = {
    # clip-path ids from the content instead of a random uuid
    "svg.hashsalt": "moxin-lab",
    # text stays text: small, searchable, and CJK labels use the reader's fonts
    "svg.fonttype": "none",
}

_IMAGE = re.compile(
    r'<img class="moxin-picture" alt="(?P<alt>[^"]*)" '
    r'width="(?P<width>\d+)" height="(?P<height>\d+)"'
    r'[^>]*? src="data:image/svg\+xml;base64,(?P<content>[A-Za-z0-9+/=]+)"/?>'
)


def figure_svg(fig: "Figure", caption: str) -> str:
    """A figure as SVG text. Warns about one above `LARGE_FIGURE`, naming its caption."""
    svg = _svg(fig)
    if len(svg) > LARGE_FIGURE:
        warnings.warn(
            f"the figure {caption!r} is {len(svg) // 1000} kB of SVG; plot fewer points: the limit "
            "of a page is 600 kB",
            stacklevel=3,
        )
    return svg


def image(svg: str, alt: str) -> str:
    """SVG text as an `<img>` that needs no trust and no network."""
    points = dict(re.findall(r' (width|height)="([\d.]+)pt"', svg[: svg.index(">")]))
    pixels = [round(float(points[side]) * 4 / 3) for side in ("width", "height")]  # 72 pt = 96 px
    if "xmlns=" not in svg[: svg.index(">")]:
        svg = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    content = base64.b64encode(svg.encode()).decode()
    return (
        f'<img class="moxin-picture" alt="{html.escape(alt)}" width="{pixels[0]}" '
        f'height="{pixels[1]}" style="max-width:100%;height:auto;background:#fff" '
        f'src="data:image/svg+xml;base64,{content}">'
    )


def inlined(text: str) -> str:
    """HTML of a page in which each picture of `image` is inline SVG, described by its text
    alternative; ids are numbered, and so unique on the page.
    """
    numbers = itertools.count(1)
    return _IMAGE.sub(lambda found: _inline(found, f"picture-{next(numbers)}"), text)


def image_of_inline(svg: str) -> str:
    """Inline SVG of a page as `image` makes it for a notebook, with its text alternative.

    HTML keeps names in lower case, where an image needs those of SVG.
    """
    for name in ("viewBox", "clipPath", "clipPathUnits", "preserveAspectRatio", "linearGradient"):
        svg = re.sub(rf"(?<=[\s</]){name.lower()}(?=[\s=>])", name, svg)
    described = re.search(r"<desc[^>]*>(.*?)</desc>", svg, re.DOTALL)
    alt = html.unescape(described[1]) if described else ""
    end = svg.index(">")
    head = re.sub(
        r' (width|height)="(\d+)"',
        lambda found: f' {found[1]}="{float(found[2]) * 3 / 4:.2f}pt"',
        svg[:end],
    )
    return image(head + svg[end:], alt)


def _inline(found: re.Match[str], key: str) -> str:
    svg = base64.b64decode(found["content"]).decode()
    view_box = re.search(r'viewBox="[^"]+"', svg)
    if view_box is None:
        raise ValueError(f"the picture {found['alt'][:60]!r} has no viewBox and cannot be scaled")
    svg = re.sub(r'((?:id|href)="#?|url\(#)', rf"\g<1>{key}-", svg).replace(
        f'href="{key}-data:', 'href="data:'
    )
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    return (
        f'<svg role="img" aria-labelledby="{key}-desc" {view_box[0]} width="{found["width"]}" '
        f'height="{found["height"]}" style="max-width:100%;height:auto;background:#fff" '
        'stroke-linejoin="round" stroke-linecap="butt">'
        f'<desc id="{key}-desc">{found["alt"]}</desc>{body}'
    )


def _svg(fig: "Figure") -> str:
    """The figure's SVG without prologue, metadata, page-wide style rules, unused ids and invisible
    digits.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(SVG_SETTINGS), warnings.catch_warnings():
        # text stays text, so the reader's browser has the glyphs that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        fig.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib's rule is `*{...}`: inlined in a page it would reach every other picture; the
    # root's attributes replace it
    svg = re.sub(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(
        r'(?<= d=")[^"]+',
        lambda m: " ".join(_shorten(m[0], 2 if len(m[0]) < 4000 else 1).split()),
        svg,
    )
    svg = re.sub(r'(?<= [xy]=")[\d.-]+(?=")', lambda m: _shorten(m[0]), svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _shorten(numbers: str, decimals: int = 2) -> str:
    """Coordinates to a hundredth of a point, or to a tenth in long curves."""
    return re.sub(
        r"-?\d+\.\d+", lambda m: f"{float(m[0]):.{decimals}f}".rstrip("0").rstrip("."), numbers
    )
