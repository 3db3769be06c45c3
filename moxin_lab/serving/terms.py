"""Text to the terms that BM25 counts, in any script.

    terms("Inserting 表を挿入")        # ["inserting", "表", "を", "挿入"]

Words of scripts with spaces are one term each, and SQLite stems English ones (Porter). Han, kana
and Hangul have no spaces, or endings that hang on: pairs of neighbouring characters of one script
are their terms, as in Lucene's CJKAnalyzer.

`question_terms` leaves out what only makes a question of it: asking words of four languages, and
hiragana, in which Japanese writes its endings.

Guarantees: full-width and half-width forms, and upper and lower case, give the same terms.
Out of scope: other scripts without spaces (Thai, Khmer), whose runs are one term each.
"""

import re
import unicodedata
from itertools import pairwise

_HIRAGANA = "\u3040-\u309f"
_SCRIPTS = (
    _HIRAGANA,
    "\u30a0-\u30ff",  # katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd々〆",  # Han
    "\uac00-\ud7a3",  # Hangul
)
_ANY = "".join(_SCRIPTS)
_TERM = re.compile("|".join([*(rf"[{script}]+" for script in _SCRIPTS), rf"[^\W_{_ANY}]+"]))
_PAIRED = re.compile(rf"[{_ANY}]")
_ONLY_HIRAGANA = re.compile(rf"[{_HIRAGANA}]+\Z")
_ASKING = re.compile(
    r"\b(?:how|what|which|where|when|why|who|do|does|did|can|could|should|would|will|is|are|was|be|"
    r"get|have|has|i|you|we|me|my|it|this|that|there|the|a|an|to|of|in|on|for|with|and|or|please)\b"
    r"|如何|怎么样|怎样|怎么|什么是|是什么|什么|哪里|哪个|为什么|请问|[吗呢]"
    r"|どのように|どうすれば(?:よい|いい)?|どうやって|とは(?:何|なん)|(?:何|なん)です|です?か|ますか"
    r"|ください|するには"
    r"|어떻게|무엇|어디에?서?|하려면|합니까|입니까|인가요|나요|해야"
)


def terms(text: str) -> list[str]:
    """Terms in their order, case folded, before stemming."""
    found: list[str] = []
    for run in _TERM.findall(unicodedata.normalize("NFKC", text).casefold()):
        if not _PAIRED.match(run) or len(run) == 1:
            found.append(run)
        else:
            found += map("".join, pairwise(run))
    return found


def question_terms(question: str) -> list[str]:
    """The distinct terms of a question without those that only ask; all of them if none is left."""
    normal = unicodedata.normalize("NFKC", question).casefold()
    asked = [term for term in terms(_ASKING.sub(" ", normal)) if not _ONLY_HIRAGANA.match(term)]
    return list(dict.fromkeys(asked or terms(normal)))
