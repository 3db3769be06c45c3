"""One linear pass over the markup of a page, before a parser sees it.

    page -> scan -> markup with empty elements closed, and whether it may be nested too deeply
                \\-> Unreadable: damaged, or made to cost more time than a page may

HTML parsers accept anything. What shows that a page is damaged, or costs time out of proportion,
is therefore looked for first: a download cut off inside a tag, a comment, a script or a sentence;
elements nested in thousands; a tag with thousands of attributes; formatting that is never closed,
which a parser repeats in each paragraph.

Guarantees: time linear in the page, whatever the page is; no text is added or removed; a tag inside
a comment, a script or a quoted attribute is no tag.
Out of scope: a page cut off where only end tags are missing that may be left out. It looks like a
whole page: `<html><body><p>Choose` is one.
"""

import re
from collections import Counter

from moxin_lab.data.unreadable import Unreadable

MAX_DEPTH = 512
"""Most elements inside each other: where Chromium stops nesting (its
`kMaximumHTMLParserDOMTreeDepth`).
"""
MAX_ATTRIBUTES = 2000
"""Most attributes of a tag. The parser compares each with all others of its tag."""
MAX_WORK = 1_000_000
"""Most steps beyond `WORK_PER_TAG` a tag: elements that the parser may repeat, or look through."""
WORK_PER_TAG = 32

RAW_TEXT = ("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes")
"""Elements whose content is no markup: only their own end tag ends it."""


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


VOID = _names(
    "area base basefont bgsound br col embed frame hr image img input keygen link meta param",
    "source track wbr",
)
OPTIONAL_END = _names(
    "body button colgroup dd dt form head html li optgroup option p rb rp rt rtc tbody td tfoot th",
    "thead tr",
)
"""Elements that the next one of their group closes: they do not nest by themselves."""
FORMATTING = _names("a b big code em font i nobr s small strike strong tt u")
"""Elements that a parser opens again in the next block if they are still open."""
_BOUNDARY = _names("applet marquee math object svg table template")
"""An end tag inside one of these closes nothing outside it."""
_CELL = _names("caption td th tr")
_BLOCKS = _names(
    "article aside blockquote center details div dl fieldset figure footer h1 h2 h3 h4 h5 h6",
    "header main nav ol pre section table ul",
)
"""Elements whose missing end tag shows that a page was cut off, also between two tags."""
_RARE = frozenset(("plaintext", *RAW_TEXT))
_UNTRACKED = frozenset(
    ("", *VOID, *OPTIONAL_END, *(f"/{name}" for name in (*OPTIONAL_END, *RAW_TEXT)))
)
_PLAIN_DEPTH = 64
_SMALL = 100_000

_ATTRIBUTES = r"""(?:[^>=\0]++|=\s*+(?:"[^"\0]*+(?:"|(?=\0))|'[^'\0]*+(?:'|(?=\0)))?)*+"""
"""Up to the end of a tag. A NUL is put after the page, and each search stops there."""
_TOKEN = re.compile(
    rf"""<(?:
        (?P<slash>/?)(?P<name>[a-zA-Z][^\s/>\0]*+){_ATTRIBUTES}(?:>|(?P<open_tag>\0))
      | !--(?:-?>|(?s:.*?)(?:--!?>|(?P<open_comment>\0)))
      | [!?/][^>\0]*+(?:>|(?P<open_other>\0))
    )""",
    re.VERBOSE,
)
# The usual form of attributes is tried first.
_USUAL = rf"""(?:[^>=\0]*+(?:="[^"\0]*+"[^>=\0]*+)*+(?=>)|{_ATTRIBUTES})"""
_RAW_ELEMENTS = "|".join(
    rf"{name}(?=[\s>]){_USUAL}(?<!/)>[^<\0]*+(?:<(?!/{name}[\s/>])[^<\0]*+)*+" for name in RAW_TEXT
)
_RAW_LETTERS = "".join(sorted({name[0] for name in RAW_TEXT}))
_QUICK = re.compile(
    rf"""<(?:
        (?=[{_RAW_LETTERS}{_RAW_LETTERS.upper()}])(?i:{_RAW_ELEMENTS})
      | (/?[a-zA-Z][^\s/>\0]*+)(?:>|{_USUAL}(?:((?<=/)>)|>|(?=\0)))
      | !--(?:-?>|(?s:.*?)(?:--!?>|(?=\0)))
      | [!?/][^>\0]*+(?:>|(?=\0))
    )(\0?)""",
    re.VERBOSE,
)
"""Groups: name, its odd end `/>`, and whether the page ends inside this."""
_RAW_TAG = re.compile(rf"<(/?(?:{'|'.join(RAW_TEXT)}|plaintext))(?=[\s/>])", re.IGNORECASE)
_RAW_END = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in RAW_TEXT}
_SLASH_IN_VALUE = re.compile(r"""=\s*+[^\s"'=>]*/>\Z""")
_QUOTED = re.compile(r"""=\s*+(?:"[^"]*"|'[^']*')""")
_LONG_TAG = 2 * MAX_ATTRIBUTES


class _Nesting:
    """Upper bounds of depth and of a parser's work, from the tags alone."""

    def __init__(self) -> None:
        self.depth = self.deepest = self.work = self.tags = 0
        self.begun = self.ended = False
        self.starts: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.formatting: list[tuple[str, str]] = []
        self.outer: list[tuple[str, Counter[str], list[tuple[str, str]]]] = []

    def start(self, name: str, tag: str) -> None:
        """Counts a start tag; `tag` is its text."""
        self.tags += 1
        if name in OPTIONAL_END:
            self.starts[name] += 1
            self.begun |= name in ("body", "html")
        if name in FORMATTING:
            entry = (name, tag)
            alike = [i for i, other in enumerate(self.formatting) if other == entry]
            if name in ("a", "nobr"):
                self._end_formatting(name)
            elif len(alike) >= 3:  # a parser keeps three that are alike
                del self.formatting[alike[0]]
            self.formatting.append(entry)
            self.depth += 1
        elif name in _BOUNDARY:
            self.outer.append((name, self.open, self.formatting))
            self.open, self.formatting = Counter(), []
            self.depth += 1
        elif name in _CELL:
            self._clear()
        elif name not in OPTIONAL_END:
            self.open[name] += 1
            self.depth += 1
        self.work += len(self.formatting) + self.depth // 16
        self.deepest = max(self.deepest, self.depth)

    def end(self, name: str) -> None:
        """Counts an end tag; one that closes nothing changes nothing."""
        self.tags += 1
        self.work += self.depth // 16
        if name in OPTIONAL_END:
            self.ends[name] += 1
            self.ended |= name in ("body", "html")
        if name in FORMATTING:
            self._end_formatting(name)
        elif name in _BOUNDARY:
            while any(outer[0] == name for outer in self.outer):
                self._clear()
                closed, self.open, self.formatting = self.outer.pop()
                self.depth -= 1
                if closed == name:
                    return
        elif name in _CELL:
            self._clear()
        elif self.open[name] > 0:
            self.open[name] -= 1
            self.depth -= 1

    def cut_in(self, in_text: bool) -> str | None:
        """The element in which the page was cut off, or None. in_text: it ends in words.

        A page that never said `html` or `body` is a fragment, and cut only if it ends in words.
        """
        if self.ended or not (in_text or self.begun):
            return None
        counters = (self.open, *(outer[1] for outer in reversed(self.outer)))
        names = [name for counter in counters for name, count in counter.items() if count > 0]
        names += [outer[0] for outer in self.outer]
        if in_text and self.begun:
            names += [name for name, _ in self.formatting]
            names += [name for name in self.ends if self.starts[name] > self.ends[name] > 0]
        elif not in_text:
            names = [name for name in names if name in _BLOCKS]
        return names[-1] if names else None

    def _end_formatting(self, name: str) -> None:
        for index in range(len(self.formatting) - 1, -1, -1):
            if self.formatting[index][0] == name:
                del self.formatting[index]
                self.depth -= 1
                return

    def _clear(self) -> None:
        self.depth -= self.open.total() + len(self.formatting)
        self.open.clear()
        self.formatting.clear()


def scan(html: str) -> tuple[str, bool]:
    """The page with each XHTML empty element (`<a id="x"/>`) closed as `<a id="x"></a>`, and
    whether it may be deeper than `MAX_DEPTH` (the parsed tree tells).

    An HTML parser reads `<script/>` as a start tag and swallows what follows. Raises Unreadable
    with the reason `broken HTML` if markup is damaged or there is none, and `page too complex` if
    a parser could need more than `MAX_WORK` steps.
    """
    if "\0" in html:
        raise Unreadable("broken HTML", "NUL character")
    if _is_small(html) or _is_plain(html):
        return html, False
    return _scan(html)


def _is_small(html: str) -> bool:
    """Whether a page has too few tags to be deep, and nothing in it that needs a look at each."""
    if html.count("<") > MAX_DEPTH or len(html) > _SMALL or "/>" in html:
        return False
    if not html.rstrip().endswith("</html>") or html.rfind("<!--") > html.rfind("-->"):
        return False
    raw = [name.lower() for name in _RAW_TAG.findall(html)]
    if raw[1::2] != [f"/{name}" for name in raw[::2]] or "plaintext" in raw:
        return False
    return max(map(len, html.split(">"))) <= _LONG_TAG


def _is_plain(html: str) -> bool:
    """Whether a quick look shows that `_scan` would change and refuse nothing: most pages."""
    if max(map(len, html.split(">"))) > _LONG_TAG:
        return False
    stack: list[str] = []
    # The line break keeps the NUL apart from a tag that ends the page.
    tags = _QUICK.findall(html + "\n\0")
    for name, odd, cut in tags:
        if name in _UNTRACKED and not (odd or cut):
            continue
        name = name.lower()
        if odd or cut:
            if cut or name not in VOID:
                return False
            continue
        if name in _UNTRACKED:
            continue
        if name in _RARE:
            return False
        if name[0] != "/":
            stack.append(name)
            if len(stack) > _PLAIN_DEPTH:
                return False
        elif stack and stack[-1] == name[1:]:
            stack.pop()
        elif name[1:] in stack:
            # An end tag out of order: the page may be deeper than this stack.
            if name[1:] not in FORMATTING:
                return False
            stack.reverse()
            stack.remove(name[1:])
            stack.reverse()
    ended = html.endswith(">") or html.rstrip().endswith((">", "</html>"))
    return bool(tags) and not stack and ended


def _scan(html: str) -> tuple[str, bool]:
    """What `scan` says, tag by tag."""
    pieces: list[str] = []
    nesting = _Nesting()
    copied = position = 0
    page = html + "\0"
    while match := _TOKEN.search(page, position):
        position = match.end()
        slash, name = match["slash"], match["name"]
        if match.lastgroup in ("open_tag", "open_comment", "open_other"):
            where = "a comment" if match.lastgroup == "open_comment" else "a tag"
            raise Unreadable("broken HTML", f"ends inside {where}")
        if name is None:
            nesting.tags += 1
            continue
        name = name.lower()
        if slash:
            nesting.end(name)
            continue
        tag = match[0]
        if len(tag) > _LONG_TAG:
            _check_attributes(tag)
        if name in VOID:
            nesting.tags += 1
        elif tag.endswith("/>") and not _SLASH_IN_VALUE.search(tag):
            nesting.tags += 1
            pieces += (html[copied : position - 2], f"></{name}>")
            copied = position
        elif name in _RAW_END:
            position = _end_of_raw_text(html, name, position)
        elif name == "plaintext":
            break
        else:
            nesting.start(name, tag)
            if nesting.work > MAX_WORK + WORK_PER_TAG * nesting.tags:
                raise Unreadable("page too complex", _complexity(nesting))
    _check_end(html, position, nesting)
    return "".join((*pieces, html[copied:])), nesting.deepest > MAX_DEPTH


def _end_of_raw_text(html: str, name: str, position: int) -> int:
    end = _RAW_END[name].search(html, position)
    if end is None:
        raise Unreadable("broken HTML", f"ends inside <{name}>")
    return end.start()


def _check_attributes(tag: str) -> None:
    count = len(re.findall(r"[\s=/]+", _QUOTED.sub("= ", tag)))
    if count > MAX_ATTRIBUTES:
        raise Unreadable("page too complex", f"a tag with about {count} attributes")


def _complexity(nesting: _Nesting) -> str:
    return (
        f"elements nested {nesting.deepest} deep, {len(nesting.formatting)} of them formatting "
        "that is not closed"
    )


def _check_end(html: str, position: int, nesting: _Nesting) -> None:
    """Raises Unreadable for a page without markup, or one that stops before it ends."""
    if not nesting.tags and position == 0:
        raise Unreadable("broken HTML", "no markup")
    if html.endswith("<"):
        raise Unreadable("broken HTML", "ends inside a tag")
    element = nesting.cut_in(bool(html[position:].strip()))
    if element:
        raise Unreadable("broken HTML", f"ends inside <{element}>")
