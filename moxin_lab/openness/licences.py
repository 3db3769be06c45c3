"""Names of licences: SPDX expressions, and what is nearly an SPDX identifier.

    expression_fault("MIT AND Apache-2.0")       # ""
    similar("apache-2.0", identifiers)           # ["Apache-2.0"]
    similar("MIT OR Apache-2.0", identifiers)    # ["MIT", "Apache-2.0"]

Guarantees: a licence is not taken for one with other terms (CC-BY-NC-4.0 for CC-BY-4.0) or of
another version.
Out of scope: whether a licence counts (`mof.py`).
"""

import difflib
import re
from collections.abc import Iterable


def expression_fault(expression: str) -> str:
    """Why a text is no SPDX licence expression, by the library's list; empty if it is one."""
    from license_expression import ExpressionError, ExpressionParseError, get_spdx_licensing

    licensing = get_spdx_licensing()
    try:
        parsed = licensing.parse(expression)
    except (ExpressionError, ExpressionParseError) as error:
        return str(error)
    if parsed is None:
        return "it is empty"
    own = re.compile(r"(DocumentRef-[\w.-]+:)?LicenseRef-[\w.-]+")
    unknown = [key for key in licensing.unknown_license_keys(parsed) if not own.fullmatch(key)]
    return f"unknown: {', '.join(unknown)}" if unknown else ""


def similar(licence: str, identifiers: Iterable[str]) -> list[str]:
    """SPDX identifiers that a text may stand for, each licence of an expression by itself; empty
    for any other text.
    """
    by_key: dict[str, str] = {}
    for identifier in sorted(identifiers, key=lambda name: (len(name), name)):
        by_key.setdefault(_key(identifier), identifier)  # GPL-3.0 before GPL-3.0-only
    found = []
    parts = re.split(r"\s+(?:or|and|with)\s+|[/,;|&()]", licence[:200], flags=re.IGNORECASE)
    for part in filter(str.strip, parts):
        key = _key(part)
        # A slip of the pen, not another version. A lower cutoff would take CC-BY-NC-SA-4.0 for
        # CC-BY-SA-4.0.
        digits = re.sub(r"\D", "", key)
        same = [name for name in by_key if digits in ("", re.sub(r"\D", "", name))]
        close = [key] if key in by_key else difflib.get_close_matches(key, same, 1, cutoff=0.9)
        found += [by_key[name] for name in close]
    return list(dict.fromkeys(found))


def _key(text: str) -> str:
    """Letters and digits, without the words around a name and without the `.0` of a version."""
    words = re.sub(r"\b(the|licen[cs]es?|version|software|public)\b|v(?=\d)", " ", text.lower())
    return re.sub(r"[^a-z0-9]", "", re.sub(r"(?<=\d)\.0\b", "", words))
