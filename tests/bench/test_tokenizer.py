"""Guarantees of `moxin-lab bench tokenizer`: every tokenizer counts the same texts, other encoders
are timed on ids that equal ours, and a missing peer is a row with its reason.
"""

import argparse
from importlib.util import find_spec

import pandas as pd
import pytest

from moxin_lab import scales
from moxin_lab.bench import tokenizer as bench

SENTENCES = {
    "en": "The window of the document has a menu, and the menu of the window a file number {}.\n",
    "zh": "在文档窗口的菜单里打开文件，第{}个文件在文档窗口。\n",
    "ja": "ドキュメントのウィンドウのメニューで{}番目のファイルを開きます。\n",
    "ko": "문서 창의 메뉴에서 {}번째 파일을 열고 문서 창을 봅니다.\n",
    "code": "def open_{0}(window):\n    return window.menu[{0}].file\n",
}


def write_documents(folder):
    """Sides of documents as stage 01 leaves them, of a few sentences in five languages."""
    rows = [
        {"source": "s", "language": language, "text": text.format(number) * 3, "page": f"p{number}"}
        for language, text in SENTENCES.items()
        for number in range(40)
    ]
    for side, part in (("train", rows[::2]), ("heldout", rows[1::2]), ("udhr/train", rows[1::2])):
        (folder / side).mkdir(parents=True)
        pd.DataFrame(part).assign(id="d", project="").to_parquet(folder / side / "0.parquet")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder)
    settings = scales.load("tiny").tokenizer.model_copy(
        update={"vocab_size": 440, "min_tokens_per_expert": 0, "english_floor": 0.5}
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(bench, "ONE_DOCUMENT_BYTES", 8_000_000)
    patch.setattr(scales, "load", lambda name: argparse.Namespace(tokenizer=settings))
    patch.setenv("TOKENIZERS_PARALLELISM", "false")
    options = argparse.Namespace(
        scale="tiny", documents=folder, train=None, out=folder / "out", json=None
    )
    yield bench.run(options)
    patch.undo()


def of(result, measure):
    return [row for row in result["rows"] if row["measure"] == measure]


def test_every_tokenizer_counts_every_text(result):
    counted = {(row["tokenizer"], row["text"], row["language"]) for row in of(result, "tokens")}
    names = ("routed", "joint BPE", "Mistral v0.1", "Tekken")
    assert counted == {
        *((name, "heldout", language) for name in names for language in bench.LANGUAGES),
        *((name, "udhr", language) for name in names for language in bench.LANGUAGES[:-1]),
    }
    sizes = {
        (row["text"], row["language"], round(row["tokens"] * row["bytes_per_token"]))
        for row in of(result, "tokens")
    }
    assert len(sizes) == 9, "the same bytes for every tokenizer"


def test_an_encoder_is_timed_on_every_language_or_has_a_reason(result):
    rows = of(result, "speed")
    for name, package in {
        "tiktoken": None,
        "quicktok": "quicktok",
        "gigatoken": "gigatoken",
    }.items():
        mine = [row for row in rows if row["encoder"] == name]
        if package and find_spec(package) is None:
            assert "not installed: pip install" in mine[0]["reason"]
        else:
            assert [row["language"] for row in mine] == list(bench.LANGUAGES)
            assert all(row["megabytes_per_second"] > 0 for row in mine)


def test_the_weight_is_one_of_those_tried_and_one_document_has_its_cost(result):
    training = of(result, "training")[0]
    assert training["weight"] in {row["factor"] for row in result["trade_off"]}
    document = of(result, "one document")[0]
    assert document["cpu_seconds_8_mb"] > document["cpu_seconds_2_mb"] > 0
    assert document["peak_bytes_8_mb"] >= document["peak_bytes_2_mb"]
