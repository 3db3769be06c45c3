"""Tables and figures show the numbers of the harness's samples; comparisons are paired."""

import json
import math

import pandas as pd
import pytest

from moxin_lab.evaluation import figures, results


def result(answers, nats):
    """The part of lm-eval's result structure that the tables read."""
    cloze = [
        {"doc_id": i, "doc": {"id": f"q{i}"}, "acc": float(a), "acc_norm": 1.0 - a}
        for i, a in enumerate(answers)
    ]
    bits = [
        {"doc_id": i, "doc": {"id": f"d{i}"}, "bits_per_byte": (-n, 100)}
        for i, n in enumerate(nats)
    ]
    return {
        "samples": {
            "moxin_cloze_en": cloze,
            "moxin_cloze_zh": cloze[:4],
            "moxin_bits_per_byte_en": bits,
        }
    }


RESULTS = {
    "trained": result([1] * 9 + [0], [70.0, 90.0]),
    "untrained": result([1, 1, 0, 0, 0, 0, 0, 0, 1, 1], [150.0, 250.0]),
}


def test_bits_and_accuracies_are_those_of_the_samples():
    bits = results.bits_table(RESULTS, seed=0).set_index(["model", "language"])
    assert bits.loc[("trained", "en"), "bits_per_byte"] == pytest.approx(160 / 200 / math.log(2))
    cloze = results.cloze_table(RESULTS).set_index(["model", "language", "metric"])
    assert cloze.loc[("trained", "en", "acc"), "accuracy"] == 0.9
    assert cloze.loc[("trained", "en", "acc_norm"), "accuracy"] == pytest.approx(0.1)
    assert cloze.loc[("trained", "all", "acc"), ["accuracy", "items"]].tolist() == [13 / 14, 14]
    assert (cloze["low"] <= cloze["accuracy"]).all() and (cloze["accuracy"] <= cloze["high"]).all()


def test_a_difference_is_paired_by_item_and_refuses_models_with_different_items():
    estimate = results.cloze_difference(RESULTS, "trained", "untrained", "acc", seed=0)
    assert estimate.value == pytest.approx((13 - 6) / 14)
    assert estimate.low < estimate.value < estimate.high
    other = {**RESULTS, "other": result([1] * 5, [1.0])}
    with pytest.raises(ValueError, match="different items"):
        results.cloze_difference(other, "trained", "other", "acc", seed=0)


def test_task_data_is_one_file_per_task_and_language(tmp_path):
    texts = pd.DataFrame(
        {"id": ["a", "b"], "language": ["zh", "en"], "text": ["字\n", "x"], "num_bytes": [4, 1]}
    )
    tasks = results.write_task_data(
        tmp_path, texts, {"zh": [{"id": "q", "context": "c", "choices": ["字"], "label": 0}]}
    )
    assert tasks == ["moxin_bits_per_byte_zh", "moxin_bits_per_byte_en", "moxin_cloze_zh"]
    row = json.loads((tmp_path / "moxin_bits_per_byte_zh.jsonl").read_text(encoding="utf-8"))
    assert row == {"id": "a", "language": "zh", "text": "字\n"}
    assert json.loads((tmp_path / "moxin_cloze_zh.jsonl").read_text(encoding="utf-8"))[
        "choices"
    ] == ["字"]


def test_figures_show_every_model_and_the_line_of_chance():
    bits = figures.bits_figure(results.bits_table(RESULTS, seed=0))
    assert [text.get_text() for text in bits.axes[0].get_legend().get_texts()] == [
        "trained",
        "untrained",
    ]
    cloze = figures.cloze_figure(results.cloze_table(RESULTS))
    assert {text.get_text() for text in cloze.legends[0].get_texts()} == {
        "trained",
        "untrained",
        "chance, 25 %",
    }
    assert all(any(line.get_ydata()[0] == 25 for line in axes.lines) for axes in cloze.axes)


def test_a_rule_that_answers_as_many_items_as_the_model_is_named_with_its_languages():
    answers = pd.DataFrame(
        [
            (model, language, metric, accuracy)
            for model, by_language in (
                ("trained", {"en": 0.4, "zh": 0.5}),
                ("untrained", {"en": 0.9, "zh": 0.9}),
            )
            for language, accuracy in by_language.items()
            for metric in results.METRICS
        ],
        columns=["model", "language", "metric", "accuracy"],
    )
    rule = pd.Series([40.0, 49.0], index=["en", "zh"])
    cues = pd.DataFrame({"most trigrams shared with the context": rule})
    assert "trained model in 1 of 2 languages (en)." in results.cue_sentence(answers, cues)


def test_the_caption_of_the_averages_names_the_highest_and_counts_close_rows():
    printed = pd.Series({"a": 70.0, "b": 70.5, "c": 80.0})
    text = figures.averages_finding(printed)
    assert text == (
        "The highest printed average is 80 % (c); 2 of 3 rows lie within one point of another."
    )


def test_wide_tables_and_alternatives_have_every_model_and_language_of_the_long_ones():
    bits, cloze = results.bits_table(RESULTS, seed=0), results.cloze_table(RESULTS)
    assert results.bits_wide(bits).columns.tolist() == ["trained", "untrained"]
    assert results.bits_wide(bits).loc["en", "trained"] == bits["bits_per_byte"].iloc[0]
    assert "en: trained 1.15, untrained 2.89" in figures.bits_alt(bits)
    wide = results.cloze_wide(cloze)
    assert wide.index.tolist() == ["en", "zh", "all"]
    assert wide["items"].tolist() == [10, 4, 14]
    assert wide.loc["en", "trained, acc"] == pytest.approx(90)
    assert "trained acc 93 %" in figures.cloze_alt(cloze)
    assert figures.cloze_alt(cloze).count("%") == 1 + 4  # chance, two models, two metrics


@pytest.mark.parametrize(
    ("answers", "side", "seen"),
    [
        ([1] * 20, "is above chance", "a difference is seen"),
        ([0] * 20, "is below chance", "no difference is seen"),
        ([1] * 5 + [0] * 15, "cannot be distinguished from chance", "no difference is seen"),
    ],
)
def test_a_sentence_says_what_the_intervals_say(answers, side, seen):
    untrained = [0] * 20 if seen == "a difference is seen" else answers
    found = {"trained": result(answers, [1.0]), "untrained": result(untrained, [1.0])}
    gain = results.cloze_difference(found, "trained", "untrained", "acc", seed=0)
    sentence = results.cloze_sentence(results.cloze_table(found), gain, "acc")
    assert side in sentence and sentence.endswith(f"same items): {seen}.")
