"""Steps of recipes that look at one document at a time.

Guarantees: each is `steps.rule` or `steps.Local` around a pure function of the text and its labels.
Out of scope: the functions themselves (`languages`, `heuristics`, `pii`, `decontaminate`).
"""

import string
import unicodedata

from moxin_lab.data import decontaminate, heuristics, languages, pii
from moxin_lab.data.findings import Finding
from moxin_lab.data.steps import CODE, Labels, Local, prose_rule, rule

_DROPPED = (string.punctuation + string.whitespace).encode()


def counted_characters(text: str) -> int:
    """Number of characters that are neither ASCII punctuation nor ASCII white space.

    SlimPajama's filter counts these; CJK punctuation is among them.
    Source: Cerebras modelzoo, data_preparation/nlp/slimpajama/README.md, step 2.
    """
    # Bytes of ASCII occur in UTF-8 as themselves alone, and deleting bytes is many times as fast.
    raw = text.encode("utf-8", "surrogatepass")
    return len(text) - (len(raw) - len(raw.translate(None, _DROPPED)))


def nfc() -> Local:
    """Unicode NFC, prose only."""

    def compose(text: str, labels: Labels) -> str:
        return text if labels.language == CODE else unicodedata.normalize("NFC", text)

    return Local("NFC", compose)


def short(minimum: int, unfiltered: frozenset[str] = frozenset()) -> Local:
    """Drops documents with fewer characters, punctuation and white space not counted.

    unfiltered: sources of short questions, which this step passes by.
    """

    def check(text: str, labels: Labels) -> Finding | None:
        if labels.source in unfiltered:
            return None
        count = counted_characters(text)
        if count >= minimum:
            return None
        return Finding("short document", f"{count} characters, {minimum} needed")

    return rule("short filter", check)


def language(share: float, unfiltered: frozenset[str] = frozenset()) -> Local:
    """Drops prose of which less than `share` of the bytes is in the stated language, whose code may
    be any that `languages.code` knows.

    It is not relabelled: an untranslated page is a second copy of the English page, and a
    half-translated one would put text in another language under either label.
    """

    def check(text: str, labels: Labels) -> Finding | None:
        if labels.source in unfiltered:
            return None
        if languages.is_mostly(text, languages.code(labels.language), share):
            return None
        shares = list(languages.shares(text).items())
        found = ", ".join(f"{name} {share:.0%}" for name, share in shares[:3])
        return Finding("language mismatch", found or "no letters")

    return prose_rule("language", check)


def web_heuristics() -> Local:
    """RefinedWeb's and Gopher's rules with DCLM's values."""
    return prose_rule("heuristics", lambda text, labels: heuristics.check(text, labels.language))


def personal_data() -> Local:
    """E-mail addresses, public IP addresses and keys become placeholders."""
    return Local("personal data", lambda text, labels: pii.replace(text)[0])


def decontamination(index: decontaminate.Index) -> Local:
    """Drops documents that hold a 13-gram of an evaluation item; the detail is the hit."""
    return rule("decontamination", lambda text, labels: index.rule(text))
