"""Emoji as an image-text set: one row per concept, in two styles, with names in 28 languages.

    emoji-datasource-google  --+
    emoji-datasource-twitter --+--> concepts with both drawings and an English name
    emojibase-data           --+      --> families --> splits

Columns of `data_cards/emoji` (train, validation, test and flags, one file each):

    concept     string   Unicode code points in hexadecimal, joined by "-", as in the image package
    emoji       string   the character itself
    family      string   the first concept of the family in sorted order, the key of the split
    category    string   nine groups, such as `Food & Drink`
    subcategory string   about a hundred, such as `food-fruit`
    texts       list<struct<language, label, tags: list<string>>>   one entry per language
    google      binary   PNG, 64 x 64, Noto; the package's bytes
    twitter     binary   PNG, 64 x 64, Twemoji; the package's bytes

A family contains versions of the same thing: by gender, age, skin tone and direction, sequences
with the same first part before a zero-width joiner, and the 24 clock faces.

Guarantees: a family is in one file only; flags, whose drawings share one layout, are in a separate
file; families of more than `LARGE_FAMILY` concepts are in train, so that no family dominates a
test; the same archives give the same rows.
Out of scope: drawings of skin tones (only the base concept is included); decoding images.
"""

import hashlib
import json
import re
from collections import defaultdict
from typing import Any

import pyarrow as pa

from moxin_lab.data.archives import Files

LANGUAGES = (
    *("bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja"),
    *("ko", "lt", "ms", "nb", "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant"),
)
STYLES = ("google", "twitter")
SPLIT_SHARES = {"train": 80, "validation": 10, "test": 10}
LARGE_FAMILY = 12

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("concept", "emoji", "family", "category", "subcategory")]
    + [
        (
            "texts",
            pa.list_(
                pa.struct(
                    [
                        ("language", pa.string()),
                        ("label", pa.string()),
                        ("tags", pa.list_(pa.string())),
                    ]
                )
            ),
        ),
        ("google", pa.binary()),
        ("twitter", pa.binary()),
    ]
)

_JOINER, _VARIATION = "200D", "FE0F"
_SKIN_TONES = {f"1F3F{digit}" for digit in "BCDEF"}
_PERSONS = {"1F468", "1F469", "1F9D1", "1F466", "1F467", "1F9D2"}
_MARKS = {"2640", "2642", "27A1", "2194", "2195"}
"""Gender signs and arrows: joined to a person, they give its gender or direction."""
_VARIANT_WORDS = re.compile(
    r"\b(man|men|woman|women|person|people|boy|girl|boys|girls|male|female|older|old|baby|child|"
    r"facing|left|right|up|down|upwards|downwards|leftwards|rightwards|upper|lower|back|backhand|"
    r"north|south|east|west|prince|princess|king|queen|with crown|mrs\.?|mx|santa|"
    r"counterclockwise|clockwise|curving|oncoming|tilted)\b"
)
_CLOCK_FACE = re.compile(r"\w+(-thirty| o.clock)")


def tables(contents: list[Files]) -> dict[str, pa.Table]:
    """The four tables, from the files of the archives google, twitter and emojibase.

    Raises KeyError or ValueError for a package of another layout; `packaged.py` reports it by name.
    """
    rows = concepts(contents)
    assigned = families({row["concept"]: _english(row)["label"] for row in rows})
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        row["family"] = assigned[row["concept"]]
        members[row["family"]].append(row)
    split_rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*SPLIT_SHARES, "flags")}
    for family, of_family in members.items():
        flag = any(row["category"] == "Flags" for row in of_family)
        split_rows["flags" if flag else split_of(family, len(of_family))] += of_family
    ordered = {
        name: sorted(part, key=lambda row: _digest(row["concept"]).hex())
        for name, part in split_rows.items()
    }
    return {
        f"{name}.parquet": pa.Table.from_pylist(part, schema=SCHEMA)
        for name, part in ordered.items()
    }


def concepts(contents: list[Files]) -> list[dict[str, Any]]:
    """The concepts that both packages draw and that have an English name, by code point.

    Rows have all columns except `family`.
    """
    google, twitter, names = contents
    texts = {language: _texts(names[f"package/{language}/data.json"]) for language in LANGUAGES}
    rows = []
    for entry in json.loads(google["package/emoji.json"]):
        images = {
            style: files.get(f"package/img/{style}/64/{entry['image']}")
            for style, files in zip(STYLES, (google, twitter), strict=True)
        }
        key = _without_variation(entry["unified"])
        if entry["category"] == "Component" or None in images.values() or key not in texts["en"]:
            continue
        rows.append(
            {
                "concept": entry["unified"],
                "emoji": "".join(chr(int(point, 16)) for point in entry["unified"].split("-")),
                "category": entry["category"],
                "subcategory": entry["subcategory"],
                "texts": [
                    {"language": language, **texts[language][key]}
                    for language in LANGUAGES
                    if key in texts[language]
                ],
                **images,
            }
        )
    return sorted(rows, key=lambda row: row["concept"])


def _texts(content: bytes) -> dict[str, dict[str, Any]]:
    return {
        _without_variation(entry["hexcode"]): {
            "label": entry["label"],
            "tags": entry.get("tags", []),
        }
        for entry in json.loads(content)
    }


def _without_variation(concept: str) -> str:
    return "-".join(point for point in concept.split("-") if point != _VARIATION)


def _english(row: dict[str, Any]) -> dict[str, Any]:
    return next(text for text in row["texts"] if text["language"] == "en")


def families(labels: dict[str, str]) -> dict[str, str]:
    """Concept to family, from concepts and their English labels.

    A family is named by its first concept in sorted order. Two concepts belong to one family if
    they share a code key (the code points without skin tones, genders and directions; for a joined
    sequence, its first part that is no person) or a name key (the label without words of gender,
    age, direction and hour).
    """
    parent = {concept: concept for concept in labels}

    def root(concept: str) -> str:
        while parent[concept] != concept:
            concept = parent[concept]
        return concept

    first_with: dict[str, str] = {}
    for concept, label in sorted(labels.items()):
        for key in (_code_key(concept), _name_key(label)):
            other = first_with.setdefault(key, concept)
            low, high = sorted((root(concept), root(other)))
            parent[high] = low
    return {concept: root(concept) for concept in labels}


def _code_key(concept: str) -> str:
    parts = [
        [point for point in part.split("-") if point not in _SKIN_TONES and point != _VARIATION]
        for part in concept.split(f"-{_JOINER}-")
    ]
    kept = [
        part
        for part in parts
        if part[0] not in _PERSONS and (len(parts) == 1 or part[0] not in _MARKS)
    ]
    first = kept[0] if kept else ["person"]
    return f"code {'-'.join(first)}"


def _name_key(label: str) -> str:
    if _CLOCK_FACE.fullmatch(label):
        return "name clock face"
    rest = " ".join(re.sub(r"[^\w ]", " ", _VARIANT_WORDS.sub(" ", label.lower())).split())
    return f"name {rest or 'person'}"


def split_of(family: str, size: int) -> str:
    """The split of a family without flags, by a hash of its name. size: number of concepts."""
    if size > LARGE_FAMILY:
        return "train"
    position = int.from_bytes(_digest(family)[:8], "big") % sum(SPLIT_SHARES.values())
    for name, share in SPLIT_SHARES.items():
        if position < share:
            return name
        position -= share
    raise AssertionError("the shares add up to the modulus")


def _digest(text: str) -> bytes:
    return hashlib.sha256(f"emoji {text}".encode()).digest()
