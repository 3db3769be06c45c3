"""`moxin_lab.untrusted`: hostile JSON and YAML is refused quickly and with a reason, and harmless
text gives the value that the standard loaders give.
"""

import json
import os
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab import untrusted
from moxin_lab.untrusted import UntrustedError, load_json, load_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def laughs(entry, levels):
    """Each level names the one below nine times."""
    lines = [entry.format(level=0, below="&a [x]")]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


# processor seconds. Read without a guard, each of these texts takes from seconds to hours; guarded,
# the slowest takes 0.3 on the machine where this was set.
SECONDS = 2

HOSTILE = {
    "recursive alias": ("a: &a [*a]", "contains itself"),
    "recursive mapping": ("&a {b: {c: *a}}", "contains itself"),
    "exponential aliases": (laughs("a0: &a0 [x]", 12), "more than 100,000 parts"),
    "exponential merges": (
        "a0: &a0 {k: v}\n"
        + "\n".join(
            f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}"
            for level in range(1, 12)
        ),
        "more than 100,000 parts",
    ),
    "depth through aliases": (
        "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200)),
        "nested too deeply",
    ),
    "5,000 brackets": ("[" * 5000, "nested too deeply"),
    "100,000 closed brackets": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "100,000 braces": ("{a: " * 100_000, "nested too deeply"),
    "nested dashes": ("- " * 5000, "nested too deeply"),
    "nested question marks": ("? " * 5000, "nested too deeply"),
    "a million entries": ("- x\n" * 1_000_000, "more than 100,000 parts"),
    "50 MB of comments": ("# x\n" * 12_500_000, "larger than 4,194,304 bytes"),
    "150,000 tag directives": (
        "".join(f"%TAG !a{i}! tag:x:\n" for i in range(150_000)) + "--- a",
        "%TAG directives",
    ),
    **{
        f"20,000 tag directives after U+{ord(line_break):04X}": (
            f"# x{line_break}"
            + "".join(f"%TAG !a{i}! tag:x:{line_break}" for i in range(20_000))
            + "--- a",
            "%TAG directives",
        )
        for line_break in "\r\x85\u2028\u2029"
    },
    "20,000 keys of one hash": (
        "\n".join(f"{i * (2**61 - 1)}: x" for i in range(20_000)),
        r"integer key of 2\*\*61 - 1 or more.* line 2,",
    ),
    "20,000 keys of one hash in hexadecimal": (
        "\n".join(f"-{i * (2**61 - 1):#x}: x" for i in range(1, 20_000)),
        r"integer key of 2\*\*61 - 1 or more.* line 1,",
    ),
    "20,000 merged keys of one hash": (
        "a:\n  <<: {" + ", ".join(f"{i * (2**61 - 1)}: x" for i in range(20_000)) + "}",
        r"integer key of 2\*\*61 - 1 or more.* line 2,",
    ),
    "20,000 members of one hash": (
        "!!set\n" + "\n".join(f"? {i * (2**61 - 1)}" for i in range(20_000)),
        r"integer key of 2\*\*61 - 1 or more.* line 3,",
    ),
    "a number in base 60": ("1" + ":1" * 200_000, "a number of 400001 digits"),
    "a number of 5,000 digits": ("9" * 5000, "a number of 5000 digits"),
    "a float beyond range": ("!!float 1" + ":1" * 400, "does not fit its tag"),
    "not an integer": ("!!int x", "does not fit its tag"),
    "an empty integer": ("!!int ''", "does not fit its tag"),
    "not a date": ("!!timestamp x", "does not fit its tag"),
    "month 99": ("2024-99-99", "does not fit its tag"),
    "not a truth": ("!!bool x", "does not fit its tag"),
    "a Python object": ("!!python/object/apply:os.system [true]", "python/object"),
    "unhashable key": ("? [a]\n: b", "unhashable"),
    "a million documents": ("---\n" * 1_000_000, "second document"),
    "undefined alias": ("*a", "undefined alias"),
    "control character": ("a: \0", "control characters"),
    "not UTF-8": (b"\xff\xfe", "UTF-8"),
    "half a pair": ('"\\ud800"', "Unicode|escape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_quickly_and_says_why(name):
    text, reason = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(UntrustedError, match=reason):
        load_yaml(text)
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice in line 3"),
        ("a:\n  x: 1\n  x: 2", "'x' is given twice in line 3"),
        ("- {x: 1, 'x': 2}", "'x' is given twice in line 1"),
        ("1: a\n1: b", "1 is given twice in line 2"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "'<<' is given twice in line 4"),
        ("b:\n  <<: {x: 1,\n       x: 2}", "'x' is given twice in line 3"),
    ],
)
def test_a_yaml_mapping_that_names_a_key_twice_is_refused_with_its_line(text, place):
    with pytest.raises(UntrustedError, match=place):
        load_yaml(text)


def test_yaml_aliases_and_merges_of_a_sane_size_are_read():
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 1, "y": 2},
    }
    # The source of a merge is read after what it is merged into.
    assert load_yaml("a: [&a {<<: {x: 1}, x: 2}]\nb: {<<: *a, x: 3}\n'<<': 4\n? '<'\n: 5") == {
        "a": [{"x": 2}],
        "b": {"x": 3},
        "<<": 4,
        "<": 5,
    }
    assert load_yaml("") is None


def test_integer_keys_below_the_limit_and_any_integer_value_are_read():
    largest = 2**61 - 2
    assert load_yaml(f"{largest}: {2**80}\n{-largest}: 1\n0: 2") == {
        largest: 2**80,
        -largest: 1,
        0: 2,
    }


@settings(deadline=None)
@given(VALUES)
def test_yaml_and_json_that_were_written_are_read_back(value):
    assert load_yaml(yaml.safe_dump(value)) == value
    assert load_json(json.dumps(value)) == value


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="[]{}&*!|>'\"%#:-,?<x1 \n", max_size=60))
def test_any_text_gives_a_value_or_the_documented_error(content):
    for load in (load_yaml, load_json):
        try:
            load(content)
        except UntrustedError as error:
            assert str(error)


@pytest.mark.parametrize("path", ["papers/claims.yml", "papers/deviations.yml", "MOF.yml"])
def test_our_own_files_are_read_as_pyyaml_reads_them(repository, path):
    text = (repository / path).read_text(encoding="utf-8")
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        ("9" * 5000, "digits"),
        ("\ufeff1", "BOM"),
        ("[1] x", "Extra data"),
        (b"\xff", "UTF-8"),
        ("", "Expecting value"),
        ("[" + "0," * 9_000_000 + "0]", "larger than"),
    ],
)
def test_hostile_json_is_refused_quickly_and_says_why(text, reason):
    began = time.process_time()
    with pytest.raises(UntrustedError, match=reason):
        load_json(text)
    assert time.process_time() - began < SECONDS


def test_a_large_file_or_a_pipe_is_refused_before_it_is_read(tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UntrustedError, match="larger than 100 bytes"):
        untrusted.read_bytes(large, 100)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UntrustedError, match="a pipe or a device"):
        untrusted.read_bytes(tmp_path / "pipe", 100)


@given(st.text(st.characters(), max_size=40))
def test_a_printable_text_is_one_line_of_utf_8_that_moves_nothing(text):
    shown = untrusted.printable(text)
    assert shown.encode().decode() == shown
    assert len(f"{shown}.".splitlines()) == 1
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)


def test_a_printable_text_keeps_every_script_and_joined_emoji():
    for text in ("Zürich", "中文 한국어 日本語", "שלום", "👩‍👩‍👧", "e\u0301", "a\u00a0b"):
        assert untrusted.printable(text) == text
    assert untrusted.printable("\x1b[31m\u202e\udcff\n") == r"\x1b[31m\u202e\udcff\n"
