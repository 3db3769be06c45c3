"""Guarantees of notebook 02's verdicts: they follow from the intervals and can go either way."""

import pandas as pd
import pytest

from moxin_lab.tokenizer import verdicts


def gains(low_over_joint):
    rows = [
        {"language": language, "tokenizer": name, "gain": low + 1, "low": low, "high": low + 2}
        for name in (*verdicts.JUDGED, verdicts.WEIGHTED)
        for language, low in zip(
            ("zh", "ja", "ko"),
            low_over_joint if name == verdicts.EQUAL_WEIGHTS else (20, 20, 20),
            strict=True,
        )
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("low", "expected"),
    [
        ((1, 1, 1), "reproduced"),
        ((1, -0.5, 1), "no difference seen"),
        ((1, -9, 1), "contradicted"),
    ],
)
def test_one_language_without_a_gain_decides_the_verdict(low, expected):
    verdict, evidence = verdicts.judge_experts(gains(low), ["zh", "ja", "ko"], 32_000)
    assert verdict == expected and "32,000 ids" in evidence and "ja" in evidence


def test_the_evidence_says_what_routing_gives_alone_and_what_english_pays():
    table = gains((1, 1, 1))
    english = {"language": "en", "tokenizer": "over joint BPE", "gain": -3, "low": -4, "high": -2}
    table = pd.concat([table, pd.DataFrame([english])])
    evidence = verdicts.judge_experts(table, ["zh", "ja", "ko"], 32_000)[1]
    assert (
        "equal size and text zh +2.0" in evidence
        and "on these languages it is zh +21.0" in evidence
    )
    assert "English pays with en −3.0 [−4.0, −2.0] %" in evidence


def test_text_without_these_languages_decides_nothing():
    assert verdicts.judge_experts(gains((1, 1, 1)), [], 32_000)[0] == "not attempted"


def test_the_size_of_the_vocabulary_is_that_of_the_file():
    assert verdicts.judge_vocabulary(None)[0] == "not attempted"
    assert verdicts.judge_vocabulary({"size": 32_000, "shared": 31_000})[0] == "reproduced"
    assert verdicts.judge_vocabulary({"size": 32_001, "shared": 31_000})[0] == "contradicted"
