"""Manual pages, DocBook, Mallard, reStructuredText and message catalogues as plain text.

Guarantees: the words of the document stay in their order; markup, comments and the header of a
manual page do not stay; a page that is an alias (`.so man1/other.1`) or has no text is Unreadable;
XML entities are not expanded and nothing is fetched.
Out of scope: the layout of a printed page (tables of `tbl` and `eqn` formulas keep their cells and
symbols on lines of their own); macros that a page defines itself.
"""

import re
import struct
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from moxin_lab.data.unreadable import Unreadable

# ---- manual pages: groff_man(7), groff_mdoc(7), groff_char(7)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SPECIAL = {
    "(aq": "'", "(dq": '"', "(cq": "’", "(oq": "‘", "(lq": "“", "(rq": "”", "(bu": "•", "(co": "©",
    "(em": "—", "(en": "–", "(hy": "-", "(mi": "-", "(ti": "~", "(ha": "^", "(rs": "\\", "(mu": "×",
    "(->": "→", "(<-": "←", "(ga": "`", "(sc": "§", "(>=": "≥", "(<=": "≤", "(+-": "±", "(at": "@",
    "(sh": "#", "(Do": "$", "(Eu": "€", "(de": "°", "(tm": "™", "(rg": "®", "(ba": "|", "(12": "½",
    "(ss": "ß", "(no": "¬", "(br": "|", "(ul": "_", "(sl": "/", "(lB": "[", "(rB": "]", "(lC": "{",
    "(rC": "}", "(la": "⟨", "(ra": "⟩", "(dg": "†", "(mc": "µ", "(pl": "+", "(eq": "=", "(!=": "≠",
    "*R": "®", "*(Tm": "™", "*(lq": "“", "*(rq": "”", "*(Aq": "'", "*(--": "—",
    "e": "\\", "-": "-", "'": "´", "`": "`", " ": " ", "~": " ", "0": " ", "t": "\t", "\\": "\\",
    ".": ".", "_": "_",
}  # fmt: skip
"""Escapes of groff_char(7) and groff(7) that stand for a character, without their backslash."""

_ESCAPE = re.compile(
    r"\\(?:(?P<comment>[\"#].*)"
    r"|\[u(?P<code>[0-9A-F]{4,6})\]|\[(?P<named>[^\]]*)\]"
    r"|(?P<font>[fFmMgkYVn](?:\[[^\]]*\]|\(..|[+-]?.))|(?P<size>s(?:\[[^\]]*\]|[+-]?\d{1,2}|\(..))"
    r"|(?P<quoted>[wvhbloLDXxZRSAH]'[^']*')"
    r"|(?P<special>\*?\(..|\*\[[^\]]*\]|\*.)|(?P<single>.))?"
)
_KEEP_LINES = {"nf": True, "EX": True, "Bd": True, "fi": False, "EE": False, "Ed": False}
_HEADINGS = frozenset(("SH", "SS", "Sh", "Ss"))
_BLANK = frozenset(("PP", "LP", "P", "Pp", "sp", "HP", "RS", "RE", "Bl", "El", "Lp"))
_TAGGED = frozenset(("IP", "It"))
_DROPPED = _words(
    "TH Dd Dt Os so nr ds if ie el de am als rm ft ps ce ad na nh hy hyphenation in ta PD ne br ti"
    " TS TE EQ EN rr ig po ll lt pl mk rt it tr TQ UE ME YS SY DT AT UC ev fp cc c2 ec eo ss cs bd"
    " vs nx ab do warn mso hw hla hpf hcode shc char fchar lf evc while break return shift psbb"
    " Bk Ek Sm Rs Re"
)
_QUOTE = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')
_MDOC_CALLS = _words(
    "Ad An Ap Ar Cm Dl Dv D1 Em Er Ev Fa Fl Fn Ft Ic Li Lk Ms Mt Nm No Ns Oc Oo Op Pa Pc Po Pq Ql "
    "Qq Sq Dq Sx Sy Tn Ux Va Vt Xr Aq Bq Brq Ac Ao Bc Bo Brc Bro Dc Do Qc Qo Sc So Cd Fd Lb St "
    "Bx Nx Fx Ox Bsx At Nd Fo Fc Xo Xc"
)
_MDOC_AROUND = {
    "Op": "[]", "Pq": "()", "Aq": "<>", "Bq": "[]", "Brq": "{}", "Dq": "“”", "Sq": "‘’",
    "Qq": '""', "Ql": "‘’",
}  # fmt: skip
_MDOC_SIGNS = {"Oo": "[", "Oc": "]", "Po": "(", "Pc": ")", "Ao": "<", "Ac": ">", "Do": "“"}
_MDOC_SIGNS |= {"Dc": "”", "So": "‘", "Sc": "’", "Bro": "{", "Brc": "}", "Bo": "[", "Bc": "]"}


def man_to_text(source: str) -> str:
    """The text of a manual page in man(7) or mdoc(7) macros.

    Headings stand between empty lines, filled text is one line per paragraph, and examples keep
    their lines. Raises Unreadable for an alias and for a page without text.
    """
    lines = _logical_lines(source)
    if alias := next((line for line in lines if line.startswith(".so ")), None):
        raise Unreadable("alias", f"the page only names another: {alias[4:].strip()}")
    out = _Paragraphs()
    skip = None
    for line in lines:
        if skip is not None:  # inside a macro's definition or text to be ignored
            skip = None if line.strip() in (f".{skip}", f"'{skip}") else skip
        elif line[:1] in (".", "'") and re.match(r"[.'][ \t]*(?:[A-Za-z]|\\\"|$)", line):
            skip = _request(line[1:].strip(), out)
        else:
            out.add(_escapes(line), starts_line=line[:1] in (" ", "\t"))
    text = out.text()
    if not text:
        raise Unreadable("no text", "the manual page holds macros only")
    return text


def _logical_lines(source: str) -> list[str]:
    r"""Lines of the source, with those that end in `\c` or a lone backslash joined."""
    joined = re.sub(r"\\\n", "", source.replace("\r\n", "\n"))
    return joined.split("\n")


class _Paragraphs:
    """Text as it is set: filled paragraphs, or lines as they stand."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.line: list[str] = []
        self.keep_lines = False

    def add(self, text: str, starts_line: bool = False) -> None:
        if self.keep_lines or starts_line:
            self.end_line()
            self.done.append(text.rstrip())
        elif text.strip():
            self.line.append(text.strip())
        else:
            self.paragraph()

    def end_line(self) -> None:
        if self.line:
            self.done.append(_joined(self.line))
            self.line = []

    def paragraph(self) -> None:
        self.end_line()
        self.done.append("")

    def text(self) -> str:
        self.end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.done)).strip()


_WIDE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def _joined(parts: list[str]) -> str:
    """Lines of one paragraph as one line; Chinese and Japanese take no space where a line ends."""
    text = parts[0]
    for before, after in pairwise(parts):
        wide = _WIDE.match(before[-1]) and _WIDE.match(after[0])
        text += after if wide else " " + after
    return text


def _request(line: str, out: _Paragraphs) -> str | None:
    """Carries one macro out. Returns what ends the lines to skip, if there are any."""
    if line.startswith(('\\"', "\\#")):
        return None
    name, _, rest = line.partition(" ")
    name, rest = name.strip(), rest.split('\\"')[0].strip()
    if name in ("de", "de1", "am", "ig"):
        words = rest.split()[0 if name == "ig" else 1 :]
        return words[0] if words else "."
    if name in _KEEP_LINES:
        out.end_line()
        out.keep_lines = _KEEP_LINES[name]
    elif name in _HEADINGS:
        out.paragraph()
        out.done += [" ".join(_arguments(rest)), ""]
    elif name in _BLANK or name == "TP":
        out.paragraph()
    elif name in _TAGGED:
        out.paragraph()
        tag = _mdoc(rest.split()) if name == "It" else " ".join(_arguments(rest)[:1])
        if tag:
            out.add(tag)
    elif name == "br":
        out.end_line()
    elif name not in _DROPPED and rest:
        out.add(_macro_text(name, rest))
    elif name == "Nm":
        out.add("")
    return None


def _macro_text(name: str, rest: str) -> str:
    if name in ("BR", "RB", "BI", "IB", "IR", "RI"):  # alternating fonts: no space between
        return "".join(_arguments(rest))
    if name in ("B", "I", "SM", "SB", "UR", "MT", "OP"):
        return " ".join(_arguments(rest))
    if name in _MDOC_CALLS:
        return _mdoc([name, *rest.split()])
    return " ".join(_arguments(rest))


def _arguments(rest: str) -> list[str]:
    found = (
        match[1].replace('""', '"') if match[1] is not None else match[2]
        for match in _QUOTE.finditer(rest)
    )
    return [_escapes(argument) for argument in found]


def _mdoc(words: list[str]) -> str:
    """The words of an mdoc line, whose macro names stand among them."""
    out: list[str] = []
    close: list[str] = []
    tight = False
    for number, word in enumerate(words):
        if word in _MDOC_AROUND:
            out.append(_MDOC_AROUND[word][0])
            close.append(_MDOC_AROUND[word][1])
            tight = True
        elif word == "Fl":
            out.append("-" if out and tight else " -")
            tight = True
        elif word == "Ns":
            tight = True
        elif word in _MDOC_SIGNS:
            out.append(_MDOC_SIGNS[word])
        elif word in _MDOC_CALLS:
            continue
        else:
            text = _escapes(word.strip('"'))
            if words[0] == "Xr" and number == 2 and text.isalnum():
                text, tight = f"({text})", True
            space = "" if tight or text in (",", ".", ";", ":", ")") or not out else " "
            out.append(space + text)
            tight = False
    return ("".join(out) + "".join(reversed(close))).strip()


def _escapes(text: str) -> str:
    return _ESCAPE.sub(_escape, text) if "\\" in text else text


def _escape(match: re.Match[str]) -> str:
    if match["code"]:
        point = int(match["code"], 16)
        return chr(point) if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF else ""
    if match["named"] is not None:
        name = match["named"]
        return _SPECIAL.get(f"({name}", _SPECIAL.get(name, ""))
    if match["special"]:
        return _SPECIAL.get(match["special"], "")
    if match["single"]:
        return _SPECIAL.get(match["single"], "")
    return ""


# ---- XML manuals

_BLOCKS = _words(
    "p para simpara title titleabbrev subtitle desc item td th entry term screen programlisting "
    "code-block listitem li note section example synopsis literallayout cmdsynopsis refname "
    "refpurpose seg member figure media table row tr list steps terms page article book chapter "
    "info links credit abstract caption formalpara variablelist itemizedlist orderedlist"
)
_VERBATIM = _words("screen programlisting code synopsis literallayout")
_HIDDEN = _words(
    "info articleinfo bookinfo indexterm remark comment link-group credit revision revhistory "
    "legalnotice copyright license media mediaobject"
)


def docbook_to_text(source: str) -> str:
    """The text of a DocBook or Mallard document: one line per paragraph, title, or list item.

    Raises Unreadable for XML that is not well-formed, has entities of its own, or has no text.
    """
    try:
        root = fromstring(source.encode("utf-8"), forbid_dtd=False, forbid_external=True)
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise Unreadable("broken XML", str(error)) from error
    pieces: list[str] = []
    _walk(root, pieces)
    lines = (re.sub(r"[ \t]+", " ", line).rstrip() for line in "".join(pieces).split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().replace("\0", " ")
    if not text:
        raise Unreadable("no text", "the document holds no text")
    return text


def _walk(root: ElementTree.Element, pieces: list[str]) -> None:
    """Text in document order, without recursion: depth is the document's, not the stack's."""
    stack: list[tuple[ElementTree.Element | None, str, bool]] = [(root, "", False)]
    while stack:
        element, text, verbatim = stack.pop()
        if element is None:
            pieces.append(text if verbatim else re.sub(r"\s+", " ", text) if text != "\n" else text)
            continue
        name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
        if not name or name in _HIDDEN:
            continue
        inner = verbatim or (name in _VERBATIM and "\n" in "".join(element.itertext()))
        ends = name in _BLOCKS or (inner and not verbatim)
        later: list[tuple[ElementTree.Element | None, str, bool]] = []
        later += [(None, "\n", True)] if ends else []
        later.append((None, element.text or "", inner))
        for child in element:
            later += [(child, "", inner), (None, child.tail or "", inner)]
        later += [(None, "\n", True)] if ends else []
        stack.extend(reversed(later))


# ---- reStructuredText

_DIRECTIVE = re.compile(r"^\s*\.\.\s+(?:[\w:+.-]+::|_[^:]*:|\|[^|]*\|)")
_ROLE = re.compile(r":[a-zA-Z:+._-]+:`([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?")
_RULE = re.compile(r"^([=\-~^\"'`#*+.:_<>])\1{2,}\s*$")


def rst_to_text(source: str) -> str:
    """reStructuredText without what only a builder reads.

    Comments, targets, options of directives and underlines go; roles and links become their words;
    directives keep their content. Raises Unreadable if nothing is left.
    """
    kept: list[str] = []
    comment: int | None = None
    options = False
    for line in source.replace("\r\n", "\n").split("\n"):
        indent = len(line) - len(line.lstrip())
        if comment is not None:
            if not line.strip() or indent > comment:
                continue
            comment = None
        if re.match(r"^\s*\.\.(\s|$)", line):
            if _DIRECTIVE.match(line):
                head, _, title = line.partition("::")
                options = True
                if title.strip() and re.search(r"\.\. (?!toctree|include|image|figure)", head):
                    kept.append(title.strip())
            else:
                comment = indent
            continue
        if options and re.match(r"^\s+:[\w-]+:", line):
            continue
        options = options and not line.strip()
        if not _RULE.match(line.strip()):
            kept.append(_LINK.sub(r"\1", _ROLE.sub(r"\1", line)).replace("``", "").rstrip())
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    if not text:
        raise Unreadable("no text", "the file holds directives only")
    return text


# ---- message catalogues: the GNU gettext manual, "The Format of GNU MO Files"

_MO_MAGIC = 0x950412DE


def catalogue_to_text(content: bytes) -> str:
    """The translations of a compiled gettext catalogue (UTF-8), one per paragraph, in its order.

    A message equal to its original, and one that came before, is left out. Raises Unreadable for
    damage and for a catalogue without translations.
    """
    try:
        messages = _mo_messages(content)
        header = messages.pop(b"", b"").decode("ascii", "replace").lower()
        if "charset=" in header and "charset=utf-8" not in header:
            raise Unreadable("not UTF-8", header.partition("charset=")[2].split("\n")[0])
        texts = {
            form.decode("utf-8"): None
            for original, translation in messages.items()
            for form in translation.split(b"\0")
            if form.strip() and form not in original.split(b"\0")
        }
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise Unreadable("broken catalogue", str(error)) from error
    if not texts:
        raise Unreadable("no text", "the catalogue translates nothing")
    return "\n\n".join(text.strip() for text in texts)


def _mo_messages(content: bytes) -> dict[bytes, bytes]:
    """Original to translation."""
    order = next((o for o in "<>" if content[:4] == struct.pack(f"{o}I", _MO_MAGIC)), None)
    if order is None:
        raise Unreadable("broken catalogue", "it does not begin with the magic number of MO files")
    count, originals, translations = struct.unpack_from(f"{order}3I", content, 8)
    if max(originals, translations) + 8 * count > len(content):
        raise Unreadable(
            "broken catalogue", f"{count} messages do not fit into {len(content)} bytes"
        )

    def string(table: int, index: int) -> bytes:
        length, start = struct.unpack_from(f"{order}2I", content, table + 8 * index)
        if start + length > len(content):
            raise Unreadable("broken catalogue", f"message {index} ends after the file")
        return content[start : start + length]

    return {string(originals, i): string(translations, i) for i in range(count)}
