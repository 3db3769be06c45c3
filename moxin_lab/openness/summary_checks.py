"""Automatic checks of the fields of a public summary, by the names of `summary_metrics.yml`.

    apply("each version", "2.1.c", sheet)      # Found(1, "each of 4 entries has it")

Guarantees: a blank field scores 0, whatever is asked of it; a field that does not apply, by the
template's own yes or no above it or by the stated reason, is not counted, and neither is a blank
field below a question that is itself blank, which scores 0.
Out of scope: what needs judgement, for which `apply` gives NEEDS_ANSWER; the document as a whole
(`summary_document.py`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from moxin_lab.lab.summary_page import PARENTS, answered_no
from moxin_lab.openness.summary_sheet import (
    NEEDS_ANSWER,
    Found,
    Sheet,
    is_date,
    is_filled,
    links,
    met,
    plainness,
    texts,
)

OPTIONAL = ("1.3.g", "2.1.e", "2.2.2.e", "2.3.i", "2.4.e", "2.5.e", "2.6.c", "3.1.c", "3.3.a")
"""Additional comments: blank, they ask for nothing."""


def apply(check: str, field: str, sheet: Sheet) -> Found:
    """The result of a check, or NEEDS_ANSWER."""
    kind, _, part = check.partition(" ")
    if check == "consistent":
        return _consistent(field, sheet)
    if (inapplicable := _inapplicable(field, sheet)) is not None:
        return inapplicable
    content = sheet.field(field)
    if not is_filled(content):
        return Found(0, "the field is blank")
    if check in FIELD:
        return FIELD[check](content, field, sheet)
    if kind == "has":
        return met(bool(content.get(part)), f"the part `{part.replace('_', ' ')}` is given")
    if kind == "each":
        return _each(content, part)
    raise ValueError(f"unknown check {check!r}")


def _inapplicable(field: str, sheet: Sheet) -> Found | None:
    content = sheet.field(field)
    if reason := content.get("not_applicable"):
        return Found(None, str(reason))
    parents = PARENTS.get(field, ())
    if answered_no(field, sheet.summary["fields"]):
        return Found(None, f"{' and '.join(parents)} is answered no")
    unanswered = [name for name in parents if not is_filled(sheet.field(name))]
    if unanswered and not is_filled(content):
        return Found(None, f"not known to apply: {' and '.join(unanswered)} is blank")
    if field in OPTIONAL and not is_filled(content):
        return Found(None, "optional, and left blank")
    return None


# ---- checks of a field


def _filled(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return Found(1, "the field is filled")


def _answered(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return met(content.get("answer") in ("yes", "no"), "the field is answered with yes or no")


def _items(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return met(bool(content.get("items")), f"{len(content.get('items') or [])} entries are listed")


def _each(content: Mapping[str, Any], part: str) -> Found:
    items = content.get("items") or []
    having = [item for item in items if isinstance(item, Mapping) and item.get(part)]
    if not items:
        return Found(0, "no entries are listed")
    share = len(having) / len(items)
    return Found(
        1 if share == 1 else 0.5 if share >= 0.5 else 0,
        f"{len(having)} of {len(items)} entries give: {part}",
    )


def _accurate(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    """Fields made from records are made again and compared; others need an answer."""
    if not content.get("records"):
        return NEEDS_ANSWER
    again = sheet.recomputed.get(field, {})
    same = all(content.get(name) == value for name, value in again.items()) and bool(again)
    return met(same, "made again from data cards and run records, it says the same")


def _plain(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return plainness(list(texts(content)))


def _links_lead_somewhere(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    """Addresses inside the release are looked up; others cannot be, offline."""
    found = list(links(content))
    if not found:
        return Found(0, "it has no link")
    outside = [link for link in found if "://" in link]
    if sheet.release is None or outside:
        return NEEDS_ANSWER
    dead = [link for link in found if not (sheet.release / link.partition("#")[0]).exists()]
    return met(not dead, f"{len(found)} links lead to files" + (f", not {dead}" if dead else ""))


def _one_model(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    if len(content.get("items") or []) == 1:
        return Found(None, "one model only")
    return NEEDS_ANSWER


def _other_modality(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    usual = {"text", "image", "audio", "video"}
    modalities = {str(item).lower() for item in sheet.field("1.3.a").get("items") or []}
    return NEEDS_ANSWER if modalities - usual else Found(None, "no other modality")


def _sampling(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    modalities = {str(item).lower() for item in sheet.field("1.3.a").get("items") or []}
    if not modalities & {"audio", "video"}:
        return Found(None, "no audio or video")
    return met(bool(content.get("sampling")), "the sampling rate is given")


def _opt_outs_of_others(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return met(bool(content.get("opt_outs")), "it says how sets with an opt-out are used")


def _summaries(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    if content.get("answer") == "no":
        return Found(None, "no dependency")
    return met(any(item.get("link") for item in content.get("items") or []), "summaries are linked")


def _has_unit(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return met(content.get("unit") in ("tokens", "bytes"), "the unit is tokens or bytes")


def _month(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return met(is_date(content.get("date"), "%m/%Y"), "the month is exact, as MM/YYYY")


def _month_period(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    ends = [
        end
        for item in content.get("items") or []
        for end in re.findall(r"[^\s–-]+", str(item.get("period", "")))
    ]
    exact = bool(ends) and all(is_date(end, "%m/%Y") for end in ends)
    return met(exact, "each period is given as MM/YYYY")


def _policy(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    if content.get("policy"):
        return Found(1, "a public copyright policy is summed up")
    return Found(None, "no separate copyright policy is published")


def _needs_answer(content: Mapping[str, Any], field: str, sheet: Sheet) -> Found:
    return NEEDS_ANSWER


FieldCheck = Callable[[Mapping[str, Any], str, Sheet], Found]
FIELD: dict[str, FieldCheck] = {
    "filled": _filled,
    "answered": _answered,
    "items": _items,
    "accurate": _accurate,
    "plain": _plain,
    "links lead somewhere": _links_lead_somewhere,
    "one model or answer": _one_model,
    "other modality": _other_modality,
    "has sampling": _sampling,
    "has opt_outs": _opt_outs_of_others,
    "has summaries": _summaries,
    "has unit": _has_unit,
    "month date": _month,
    "month period": _month_period,
    "has policy": _policy,
    "answer": _needs_answer,
}


def _consistent(section: str, sheet: Sheet) -> Found:
    """Fields of a section neither contradict each other nor the modalities of section 1; for a
    release, what is made from records says what the records say.
    """
    own = {
        name: content
        for name, content in sheet.summary["fields"].items()
        if name == section or name.startswith(f"{section}.")
    }
    if not any(is_filled(content) for content in own.values()):
        return Found(0, "the section is blank")
    contradictions = [
        f"{name} is filled although {' and '.join(PARENTS[name])} is answered no"
        for name, content in own.items()
        if name in PARENTS and is_filled(content) and answered_no(name, sheet.summary["fields"])
    ]
    overall = {str(item).lower() for item in sheet.field("1.3.a").get("items") or []}
    for name in ("2.1.b", "2.2.1.b", "2.2.2.b", "2.3.g", "2.4.d", "2.5.b"):
        extra = {str(item).lower() for item in own.get(name, {}).get("items") or []} - overall
        if name in own and extra:
            contradictions.append(f"{name} has {', '.join(sorted(extra))}, 1.3.a has not")
    contradictions += [
        f"{name} differs from the records"
        for name, content in own.items()
        if content.get("records") and _accurate(content, name, sheet).score == 0
    ]
    if contradictions:
        return Found(0, "; ".join(contradictions))
    return Found(1, "its fields agree with each other and with section 1")
