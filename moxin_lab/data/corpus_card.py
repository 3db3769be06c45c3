"""The card of the corpus of the small scale, which is in the tree without its data.

    data_cards/small_corpus/build.json   what a build wrote about itself
    data_cards/small_corpus/README.md    prose, and between two markers the numbers of build.json

Guarantees: every number of the card is computed from `build.json` or the list of packages; a card
whose numbers, versions or hashes are not theirs is a problem that `cards check` reports.
Out of scope: whether the build can be repeated, which `moxin-lab corpus build` finds out.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from moxin_lab.data.corpus import write_json
from moxin_lab.data.corpus_packages import read_packages, read_replaced

FOLDER = Path("data_cards/small_corpus")
BEGIN = "<!-- numbers: begin, written by `moxin-lab corpus card` -->"
END = "<!-- numbers: end -->"
_UNITS = ("files", "documents", "raw_bytes", "text_bytes")
REMEDY = "Write it again with `moxin-lab corpus card` after `moxin-lab corpus build`."


def write_card(root: Path, cache: Path) -> Path:
    """Copies the facts of a finished build into the card and writes its numbers; returns README.

    Raises FileNotFoundError where no build is finished.
    """
    folder = root / FOLDER
    built = json.loads((cache / "build.json").read_text(encoding="utf-8"))
    for record in built["packages"]:
        del record["rules"], record["shards"]
    del built["shards"]
    write_json(built, folder / "build.json")
    readme = folder / "README.md"
    readme.write_text(_with_numbers(readme.read_text(encoding="utf-8"), built), encoding="utf-8")
    return readme


def problems(root: Path) -> list[str]:
    """What is wrong with the card: one line per problem."""
    folder = root / FOLDER
    readme, record = folder / "README.md", folder / "build.json"
    if absent := [path for path in (readme, record) if not path.is_file()]:
        return [f"{path} is missing. {REMEDY}" for path in absent]
    built = json.loads(record.read_text(encoding="utf-8"))
    found = []
    listed = {(p.archive.package, p.archive.sha256, p.archive.licence) for p in read_packages()}
    recorded = {(p["package"], p["sha256"], p["licence"]) for p in built["packages"]}
    for name in sorted({entry[0] for entry in listed ^ recorded}):
        found.append(f"{record}: {name} is not as listed in corpus_packages.yml. {REMEDY}")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        return [*found, f"{readme} has no place for its numbers between {BEGIN!r} and {END!r}"]
    if _with_numbers(text, built) != text:
        found.append(f"{readme}: its numbers are not those of build.json. {REMEDY}")
    return found


def _with_numbers(text: str, built: dict[str, Any]) -> str:
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{numbers(built)}\n\n{END}{after}"


def numbers(built: dict[str, Any]) -> str:
    """The measured part of the card, as Markdown."""
    texts = [row for row in built["groups"] if not row["code_language"]]
    codes = [row for row in built["groups"] if row["code_language"]]
    seconds = built["seconds"]
    lines = [
        *_table("Format", _sums(built["groups"], "format")),
        "",
        *_table("Language of text", _sums(texts, "language")),
        "",
        *_table("Programming language, the 20 largest", _sums(codes, "code_language")[:20]),
        "",
        f"{len({row['code_language'] for row in codes if row['documents']})} programming languages "
        "in all.",
        "",
        "| Set aside | Files |",
        "|---|---:|",
        *(f"| {reason} | {count:,} |" for reason, count in sorted(built["rejected"].items())),
        "",
        f"The build took {seconds['raw']:,.0f} s for fetching and unpacking and "
        f"{seconds['text']:,.0f} s for the text, with {built['processes']} processes; the largest "
        f"held {built['peak_bytes'] / 2**20:,.0f} MiB of memory.",
        "",
        "| Package | Kind | Version | SHA-256 of archive | Licence | Raw bytes | Bytes of text |",
        "|---|---|---|---|---|---:|---:|",
    ]
    lines += [
        f"| `{p['package']}` | {p['kind']} | {p['version']} | `{p['sha256']}` | {p['licence']} | "
        f"{p['raw_bytes']:,} | {p['text_bytes']:,} |"
        for p in built["packages"]
    ]
    lines += ["", "| Not used | Why | In its place |", "|---|---|---|"]
    lines += [
        f"| `{gone['package']}` | {gone['reason']} | {', '.join(gone['by'])} |"
        for gone in read_replaced()
    ]
    return "\n".join(lines)


def _sums(rows: list[dict[str, Any]], column: str) -> list[tuple[str, Counter[str]]]:
    """Sums by the values of a column, the most text first."""
    sums: dict[str, Counter[str]] = {}
    for row in rows:
        sums.setdefault(row[column], Counter()).update({unit: row[unit] for unit in _UNITS})
    return sorted(sums.items(), key=lambda item: (-item[1]["text_bytes"], item[0]))


def _table(title: str, sums: list[tuple[str, Counter[str]]]) -> list[str]:
    total: Counter[str] = sum((counts for _, counts in sums), Counter())
    return [
        f"| {title} | Files | Documents | Raw bytes | Bytes of text |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | " + " | ".join(f"{counts[unit]:,}" for unit in _UNITS) + " |"
            for name, counts in [*sums, ("sum", total)]
        ),
    ]
