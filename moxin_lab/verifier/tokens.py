r"""Tokens of a normalised answer.

Guarantees: `tokenise` takes linear time and drops nothing but white space, which is a mark on what
follows it.
Out of scope: what the tokens mean (`expression`, `reading`).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """kind: num, word (letters), cmd (`\\name`), text (content of `\\text{...}`) or op."""

    kind: str
    text: str
    spaced: bool = False  # white space before it


_TOKEN = re.compile(
    r"(?P<space>\s*)(?:\\text\s*\{(?P<text>[^{}]*)\}|(?P<cmd>\\[A-Za-z]+)|(?P<num>\d+(?:\.\d+)?\.?(?!\d)|\.\d+)"
    r"|(?P<word>[A-Za-z]+)|(?P<op>\\.|''+|\S))",
    re.DOTALL,
)
_REPEATS = re.compile(r"\\(?:overline|dot|bar)(?![A-Za-z])")
OPENING = {
    "(": ")",
    "[": "]",
    "{": "}",
    r"\{": r"\}",
    r"\langle": r"\rangle",
    r"\lfloor": r"\rfloor",
    r"\lceil": r"\rceil",
}
CLOSING = frozenset(OPENING.values())


def tokenise(text: str) -> list[Token]:
    """The tokens of a normalised text; white space is only a mark on what follows it."""
    tokens = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "op"
        content = match.group(kind)
        if kind == "num" and content.endswith(".") and match.end() < len(text.rstrip()):
            content = content if _REPEATS.match(text, match.end()) else content[:-1]
        tokens.append(Token(kind, content, bool(match.group("space"))))
    return tokens
