"""MOF entries changed at random: each is evaluated or refused with its file.

    pytest -m fuzz tests/fuzz/test_mof.py    # 2,000 files, a minute, seed printed

The changes: bytes cut, flipped, repeated; a value left out, renamed, wrapped or odd; and what a
person who means harm writes into one.
"""

import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from moxin_lab.openness import mof
from tests.fuzz.measured import Call, change_bytes, change_value, check, run_in_child

CALLS = 2_000
LEAST = {"accepted": 0.1, "MofError": 0.1}
ROOT = Path(__file__).parents[2]
OWN = (ROOT / "MOF.yml", ROOT / "papers" / "moxin_mof.yml")
LICENCES = ("apache-2.0", "Apache 2", "MIT OR Apache-2.0", "MIT", "unlicensed", "", "CC-BY-NC-4.0")
HOSTILE = (
    "x: &a [*a]\n",
    "x: &a {y: *a}\n",
    "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "x: " + "[" * 5000 + "\n",
    "x: " + "{y: " * 5000 + "\n",
    "? " * 2000 + "\n",
    "# comment\n" * 600_000,
    "- x\n" * 200_000,
    "release: {}\n",
    "x: !!python/object/apply:os.getcwd []\n",
    "x: " + "9" * 6000 + "\n",
    "x: 1" + ":59" * 5000 + "\n",
    "--- second\n",
    "%TAG !a! tag:x:\n" * 40,
)


@cache
def whole_files() -> tuple[bytes, ...]:
    """Our entries, the committed fixtures, and the tool's own where MOXIN_BENCHMARKS has them."""
    fixtures = sorted((ROOT / "tests" / "openness" / "fixtures").glob("*.yml"))
    if benchmarks := os.environ.get("MOXIN_BENCHMARKS"):
        fixtures += sorted(Path(benchmarks, "mof", "fixtures").glob("*.yml"))
    return tuple(path.read_bytes() for path in (*OWN, *fixtures))


def changed(rng: random.Random) -> tuple[str, bytes]:
    content = rng.choice(whole_files())
    kind = rng.choice(("bytes", "value", "value", "licence", "hostile"))
    if kind == "bytes":
        return change_bytes(content, rng, rng.choice(whole_files()))
    if kind == "hostile":
        text = rng.choice(HOSTILE)
        lines = content.decode().splitlines(keepends=True)
        at = rng.choice((0, len(lines), rng.randrange(len(lines))))
        return f"{text[:30]!r} at line {at}", "".join([*lines[:at], text, *lines[at:]]).encode()
    entry = yaml.load(content, Loader=yaml.CSafeLoader)
    if kind == "licence":
        component = rng.choice(entry["release"]["components"])
        component["license"] = rng.choice(LICENCES)
        return f"licence {component['license']!r}", yaml.safe_dump(entry).encode()
    how, entry = change_value(entry, rng)
    return how, yaml.dump(entry).encode("utf-8", "surrogatepass")


def campaign(count: int, seed: int, folder: Path) -> Iterator[Call]:
    rng, path = random.Random(seed), folder / "MOF.yml"
    for _ in range(count):
        how, content = changed(rng)
        path.write_bytes(content)

        def evaluate(content: bytes = content) -> None:
            evaluation = mof.evaluate(path)
            assert mof.format_text(evaluation)
            # What was read is what PyYAML's own loader reads: nothing was dropped.
            entry = mof.check(yaml.load(content, Loader=yaml.CSafeLoader))
            assert mof.evaluate_entry(entry) == evaluation

        yield Call(how, evaluate, (mof.MofError,), str(path))


def test_three_hundred_changed_entries_are_evaluated_or_refused_with_their_file(tmp_path):
    check(run_in_child(campaign, 300, tmp_path, seed=0), 300, LEAST)


@pytest.mark.fuzz
def test_two_thousand_changed_entries_are_evaluated_or_refused_with_their_file(tmp_path):
    check(run_in_child(campaign, CALLS, tmp_path), CALLS, LEAST)
