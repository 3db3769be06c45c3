"""What the front page says first: findings in sentences and one key number per stage, chosen by
hand.

    findings(records, root)        # [(sentence, stage)], computed from records and released files
    numbers(records, root)         # rows of KEY_NUMBERS, this scale beside the small one

Guarantees: no number is typed here; each is read from a stage's record, or from a file under
`reports/released`, and a sentence says which way a comparison went by its interval.
Out of scope: verdicts (`claims.py`).
"""

import html
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moxin_lab.lab import measured

log = logging.getLogger(__name__)

Records = Mapping[str, Mapping[str, Any] | None]
RELEASED = "reports/released"
SMALL = "small-h100-chain"
SMALL_OF = {"01_data_curation": "corpus-small", "05_instruction_tuning": "small"}
"""The released run whose page of a stage counts: the chain read thirty megabytes of manuals, where
the small scale now curates a corpus.
"""


RELEASED_NOTE = (
    "The released run is of 28 November 2026, of 01 of the 30th, of 05 of 1 December. Its "
    "tokenizer cut Japanese between kanji and kana; today's has one expert for Chinese and "
    "Japanese, so the rows of 02 compare two designs."
)
"""What else differs between the two columns of `numbers`."""


class Number(NamedTuple):
    """A measure in words: `factor` turns its unit into that of `unit`."""

    stage: str
    measure: str
    labels: dict[str, Any]
    words: str
    unit: str
    digits: int
    factor: float = 1


KEY_NUMBERS = (
    Number(
        "01_data_curation",
        "near_duplicate_recall",
        {"bands": "9 bands of 13"},
        "near duplicates found, of pairs known to be some",
        "%",
        0,
        100,
    ),
    Number(
        "02_tokenizer",
        "gain",
        {"language": "zh", "tokenizer": "over joint BPE"},
        "Chinese bytes per token, routed against one BPE",
        "%",
        1,
    ),
    Number(
        "02_tokenizer",
        "gain",
        {"language": "ja", "tokenizer": "over joint BPE"},
        "Japanese bytes per token, routed against one BPE",
        "%",
        1,
    ),
    Number(
        "03_model",
        "cache_ratio",
        {"tokens": 32768, "model": "full"},
        "full cache over rolling cache after 32,768 tokens",
        "times",
        0,
    ),
    Number(
        "04_pretraining",
        "heldout_bits_per_byte",
        {"language": "en", "model": "after phase 3"},
        "held-out English text",
        "bits per byte",
        2,
    ),
    Number(
        "05_instruction_tuning",
        "exact_match",
        {"model": "DPO, length-normalised"},
        "held-out prompts answered exactly after DPO",
        "%",
        0,
        100,
    ),
    Number(
        "06_reasoning",
        "pass_at_1",
        {"model": "GRPO", "group": "in-family"},
        "problems solved at the first attempt after GRPO",
        "%",
        0,
        100,
    ),
    Number(
        "07_vision_language",
        "recall",
        {"language": "en", "direction": "image to text", "k": 5},
        "pictures whose caption is among the first five",
        "%",
        0,
        100,
    ),
    Number(
        "07_vision_language",
        "tasks_above_blind_and_shuffled",
        {},
        "tasks answered better with the right picture than with none or another",
        "tasks",
        0,
    ),
    Number(
        "08_benchmarks",
        "cloze_accuracy",
        {"language": "all", "model": "trained", "metric": "acc"},
        "cloze questions answered right",
        "%",
        0,
    ),
    Number(
        "09_applications",
        "recall",
        {"question": "en", "pages": "en", "retrieval": "both", "k": 5},
        "questions whose page is among the first five",
        "%",
        0,
        100,
    ),
    Number(
        "10_openness_report",
        "averages_wrong",
        {},
        "published averages that differ from their rows",
        "rows",
        0,
    ),
)


# ---- values


def measure(records: Records, stage: str, name: str, **labels: Any) -> Mapping[str, Any] | None:
    """The measure of a stage with these labels; None if the stage has not run, or, with a warning
    in the log, if its record lacks the measure.
    """
    record = records.get(stage)
    if not record:
        return None
    for item in record.get("measures", []):
        if item["name"] == name and (item.get("labels") or {}) == labels:
            return item
    log.warning("the record of %s has no measure %s %s for the front page", stage, name, labels)
    return None


def in_words(
    value: float, interval: Any, digits: int, factor: float = 1, *, sign: str = "", unit: str = ""
) -> str:
    """A value with its unit, then its interval in brackets; true minus signs."""

    def text(number: float) -> str:
        return f"{number * factor:{sign},.{digits}f}".replace("-", "−")

    ends = f" ({text(interval[0])} to {text(interval[1])})" if interval else ""
    return f"{text(value)} {unit}".strip() + ends


def key_number(records: Records, stage: str) -> str:
    """The first of KEY_NUMBERS that a stage's record has, in words with its unit; else empty."""
    for number in KEY_NUMBERS:
        if number.stage == stage and (
            found := measure(records, stage, number.measure, **number.labels)
        ):
            value = in_words(found["value"], None, number.digits, number.factor)
            return f"{number.words}: {value} {number.unit}"
    return ""


def numbers(records: Records, root: Path) -> list[dict[str, str]]:
    """KEY_NUMBERS of this scale beside those of the released small run; a number that neither has
    is omitted.
    """
    rows = []
    for number in KEY_NUMBERS:
        here = measure(records, number.stage, number.measure, **number.labels)
        small = released_number(root, number)
        if here or small:
            shape = (number.digits, number.factor)
            rows.append(
                {
                    "stage": number.stage,
                    "words": number.words,
                    "unit": number.unit,
                    "here": in_words(here["value"], here.get("interval"), *shape) if here else "",
                    "small": in_words(*small, *shape) if small else "",
                }
            )
    return rows


def released_number(root: Path, number: Number) -> tuple[float, tuple[float, float] | None] | None:
    """Value and interval of a measure on its stage's released page; None if it is not there."""
    folder = root / RELEASED / SMALL_OF.get(number.stage, SMALL)
    path = folder / f"{number.stage}.html"
    if not path.exists():
        return None
    page = path.read_text(encoding="utf-8")
    table = page[page.find('aria-label="Numbers of this stage"') :]
    labels = ", ".join(f"{name} {label}" for name, label in number.labels.items())
    name = re.escape(html.escape(number.measure.replace("_", " ")))
    row = re.search(
        rf'<th scope="row">{name}</th><td[^>]*>{re.escape(html.escape(labels))}</td>'
        r'<td class="right"[^>]*>([^<]+)</td>',
        table,
    )
    if row is None:
        return None
    found = [float(text) for text in re.findall(r"-?[\d.]+(?:e-?\d+)?", _plain(row[1]))]
    return found[0], (found[1], found[2]) if len(found) == 3 else None


def _plain(text: str) -> str:
    """A printed number as float() reads it: a comma separates an interval's ends, or thousands."""
    return text.replace("−", "-").replace(",", " " if "[" in text else "")


# ---- sentences


def findings(records: Records, root: Path) -> list[tuple[str, str]]:
    """(sentence, stage whose page shows it), for each finding whose numbers are there."""
    made = [(sentence(records, root), stage) for stage, sentence in FINDINGS]
    return [(text, stage) for text, stage in made if text]


EQUAL_WEIGHTS = "equal weights, over joint BPE"
"""The gain of stage 02 in which nothing but routing differs."""


def _routing(records: Records, root: Path) -> str:
    names = {"zh": "Chinese", "ja": "Japanese", "ko": "Korean"}
    gains = {
        name: measure(records, "02_tokenizer", "gain", language=tag, tokenizer="over joint BPE")
        for tag, name in names.items()
    }
    if any(gain is None for gain in gains.values()):
        return ""
    parts = [
        f"{in_words(g['value'], None, 1, sign='+')} % in {name}" for name, g in gains.items() if g
    ]
    better = sum(
        gain["interval"][0] > 0 for gain in gains.values() if gain and gain.get("interval")
    )
    labels = {"language": "en", "tokenizer": "over joint BPE"}
    english = measure(records, "02_tokenizer", "gain", **labels)
    price = f", and {in_words(english['value'], None, 1, sign='+')} % in English" if english else ""
    plain = [
        measure(records, "02_tokenizer", "gain", language=tag, tokenizer=EQUAL_WEIGHTS)
        for tag in names
    ]
    alone = [f"{in_words(gain['value'], None, 1, sign='+')} %" for gain in plain if gain]
    routing = (
        f" Routing alone, with equal weights, gives {', '.join(alone[:-1])} and {alone[-1]}."
        if len(alone) == len(names)
        else ""
    )
    return (
        "One small BPE per script, with more weight on three languages, changes the bytes per "
        f"token by {', '.join(parts[:-1])} and {parts[-1]}, against a single BPE of the same size: "
        f"a gain in {better} of {len(gains)} languages{price}.{routing}"
    )


def _speed(records: Records, root: Path) -> str:
    chart = speed_chart(root)
    if chart is None or chart.floor is None:
        return ""
    ours = next(bar for bar in chart.bars if bar.is_ours)
    peer = next(bar for bar in chart.bars if not bar.is_ours)
    assert ours.value is not None and peer.value is not None
    return (
        f"With the full model on one {chart.machine.split(',')[0]}, a token after 32,000 takes "
        f"{ours.value:.1f} ms; reading the weights and the cache once takes {chart.floor:.1f} ms, "
        f"and transformers takes {peer.value:.0f} ms."
    )


def _instructions(records: Records, root: Path) -> str:
    names = {"tuned": "DPO, length-normalised", "majority": "majority", "before": "pretrained"}
    found = {
        key: measure(records, "05_instruction_tuning", "exact_match", model=model)
        for key, model in names.items()
    }
    if any(each is None for each in found.values()):
        return ""
    text = {
        key: in_words(each["value"], each.get("interval"), 0, 100, unit="%")
        for key, each in found.items()
        if each
    }
    return (
        f"After SFT and DPO the model answers {text['tuned']} of held-out prompts exactly; giving "
        f"each task's most frequent answer reaches {text['majority']}, and the model before "
        f"tuning {text['before']}."
    )


def _reasoning(records: Records, root: Path) -> str:
    change = measure(
        records,
        "06_reasoning",
        "pass_difference",
        first="GRPO",
        second="CoT-SFT",
        group="in-family",
        k=1,
    )
    after = measure(records, "06_reasoning", "pass_at_1", model="GRPO", group="in-family")
    if change is None or after is None or not change.get("interval"):
        return ""
    low, high = change["interval"]
    way = (
        "more than"
        if low > 0
        else "less than"
        if high < 0
        else "no differently, by the interval, from"
    )
    solved = in_words(after["value"], after.get("interval"), 0, 100, unit="%")
    points = in_words(change["value"], change["interval"], 1, 100, sign="+", unit="points")
    return (
        f"GRPO solves {solved} of problems at the first attempt, {way} the model that it starts "
        f"from: {points}."
    )


def _vision(records: Records, root: Path) -> str:
    stage = "07_vision_language"
    own = measure(records, stage, "tasks_above_blind_and_shuffled")
    pixels = measure(records, stage, "tasks_below_nearest")
    record = records.get(stage) or {}
    tasks = sum(item["name"] == "minus_blind" for item in record.get("measures", []))
    if own is None or pixels is None:
        return ""
    return (
        f"On {own['value']:.0f} of {tasks} tasks about pictures that it has never seen the model "
        "is better with the picture than without it and than with another one. The nearest "
        "training picture by raw pixels, which needs no model, beats it on "
        f"{pixels['value']:.0f}."
    )


def speed_chart(root: Path) -> measured.Chart | None:
    """The chart of a token after 32,000, from the released measurements; None without them."""
    found = (chart for chart in measured.charts(root) if chart.question.bench == "decode")
    return next(found, None)


FINDINGS: tuple[tuple[str, Callable[[Records, Path], str]], ...] = (
    ("03_model", _speed),
    ("02_tokenizer", _routing),
    ("05_instruction_tuning", _instructions),
    ("06_reasoning", _reasoning),
    ("07_vision_language", _vision),
)
