"""Texts of a page hold no path of the machine, however a program spelled it."""

import json
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from moxin_lab.lab import layout


def escaped(path: object) -> str:
    return str(path).replace("/", "\\/")


@pytest.mark.parametrize("name", ["lab", "a lab", "実験", "labo é"])
@pytest.mark.parametrize("of_program", [False, True])
def test_the_root_is_removed_in_every_spelling(tmp_path, name, of_program):
    root = tmp_path / name
    file = root / "runs" / "x.json"
    spelled = {
        str(file): "runs/x.json",
        escaped(file): "runs\\/x.json",
        escaped(file).replace("\\", "\\\\"): "runs\\\\/x.json",
        file.as_uri(): "file://runs/x.json",
        json.dumps(str(file)): '"runs/x.json"',
        repr(f"a\n{file}"): "'a\\nruns/x.json'",
        json.dumps({"at": escaped(file)}): '{"at": "runs\\\\/x.json"}',
    }
    for text, shown in spelled.items():
        assert layout.presentable(text, root, of_program=of_program) == shown, text
    for word in ("漢", "文件：", "かな", "中"):
        for text, shown in ((f"{word}{file}に", f"{word}runs/x.jsonに"), (f"{word}{root}を", word)):
            assert layout.presentable(text, root, of_program=of_program).startswith(shown)
            assert str(root) not in layout.presentable(text, root, of_program=of_program)
    assert quote(str(root)) not in layout.presentable(quote(str(file)), root)


def test_a_path_of_a_program_after_a_letter_without_spaces_or_with_escapes_is_removed(tmp_path):
    def shown(text: str) -> str:
        return layout.presentable(text, tmp_path / "lab", of_program=True)

    assert shown("警告/usr/lib/x.so") == "警告[elsewhere]/x.so"
    assert shown('{"f": "\\/usr\\/lib\\/x.so"}') == '{"f": "[elsewhere]\\/x.so"}'
    assert tempfile.gettempdir() not in shown(f"見る{tempfile.gettempdir()}/abc/d")
    home = str(Path.home())
    assert home not in shown(f"在{home}/x") and escaped(home) not in shown(f'"{escaped(home)}\\/x"')


@pytest.mark.parametrize(
    "text",
    [
        "https:\\/\\/example.org\\/usr\\/lib\\/x",
        "https://example.org/usr/lib/x",
        "café/usr/lib",
        "слово/usr/lib",
        "a\\/usr\\/lib and\\/or",
        "\\/v1\\/chat\\/completions",
        "regex \\/\\d+\\/ and C:\\new\\/x",
        "<b>a<\\/b>",
    ],
)
def test_what_is_no_path_of_the_machine_is_left(tmp_path, text):
    assert layout.presentable(text, tmp_path / "lab", of_program=True) == text
