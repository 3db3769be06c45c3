"""The choice of translations: no item can be solved by what a translation keeps."""

import re
from collections import Counter

import pandas as pd
import pytest

from moxin_lab.evaluation import cloze, translation
from moxin_lab.evaluation.harness import TASKS_FOLDER, task_config


def pages(count: int) -> pd.DataFrame:
    rows = []
    for index in range(count):
        page = f"help/{index:02d}"
        english = f"Insert table {index}\nThe command Insert - Table{index} adds a table.\n\nMore."
        letter = chr(0x4E00 + 7 * index)
        lines = (
            f"插入{letter}表格 {index}",
            f"Insert - Table{index}",
            f"此命令{letter * 2}会添加。",
        )
        chinese = "\n".join((*lines, "更多"))
        rows.append((f"{page}/en", "help_pages", "en", page, english))
        rows.append((f"{page}/zh", "help_pages", "zh", page, chinese))
    return pd.DataFrame(rows, columns=["id", "source", "language", "page", "text"])


def test_the_right_choice_is_the_translation_and_keeps_no_letter_of_the_page():
    items = translation.build_items(pages(12), language="zh", num_items=8, seed=0)
    assert len(items) == 8
    for item in items:
        number = int(item["page"][-2:])
        right = item["choices"][item["label"]]
        assert f"插入{chr(0x4E00 + 7 * number)}表格" in right
        assert item["context"].startswith(f"Insert table {number}\n")
        assert len(set(item["choices"])) == 4
        assert not any(re.search(r"[!-~]", choice) for choice in item["choices"])
    assert Counter(item["label"] for item in items) == {0: 2, 1: 2, 2: 2, 3: 2}
    rule = cloze.cue_accuracy(items)["most trigrams shared with the context"]
    assert rule == pytest.approx(0.25)


def test_items_do_not_depend_on_the_order_of_the_rows_and_differ_by_seed():
    table = pages(12)
    first = translation.build_items(table, language="zh", num_items=8, seed=0)
    mixed = table.sample(frac=1, random_state=3)
    assert translation.build_items(mixed, language="zh", num_items=8, seed=0) == first
    assert translation.build_items(table, language="zh", num_items=8, seed=1) != first


def test_a_language_without_enough_pages_is_left_out_or_refused_by_name():
    table = pages(3)
    assert translation.build_all(table, ["en", "zh", "code"], num_items=4, seed=0) == {}
    with pytest.raises(ValueError, match="no translation items for 'zh': 3 held-out pages"):
        translation.build_items(table, language="zh", num_items=4, seed=0)
    assert "No language" in translation.sentence({})


def test_each_language_of_the_scales_has_a_task_file():
    names = {path.stem for path in TASKS_FOLDER.glob("moxin_translation_*.yaml")}
    assert names == {f"moxin_translation_{language}" for language in ("zh", "ja", "ko")}
    for name in names:
        config = task_config(name)
        assert config["dataset_kwargs"]["data_files"]["test"] == f"{name}.jsonl"
        assert config["doc_to_target"] == "label"
