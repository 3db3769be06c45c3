"""Measures: known ratios are reproduced, intervals are paired and cover the truth, peers count as
published.
"""

import html
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.tokenizer import measures, peers, router
from moxin_lab.tokenizer.routed import batches
from moxin_lab.tokenizer.router import EXPERTS

REPOSITORY = Path(__file__).parents[2]


def documents(texts_by_language):
    """A frame of documents, page p0, p1, ... in each language."""
    rows = [
        {
            "id": f"{language}/{i}",
            "language": language,
            "page": f"p{i}",
            "text": text,
            "num_bytes": len(text.encode()),
        }
        for language, texts in texts_by_language.items()
        for i, text in enumerate(texts)
    ]
    return pd.DataFrame(rows)


COUNTERS = {
    "characters": lambda texts: [len(text) for text in texts],
    "pairs": lambda texts: [len(text) // 2 for text in texts],
}


def test_compression_of_known_tokenizers_is_exact():
    counts = measures.token_counts(
        documents({"en": ["abcd", "efghij"], "zh": ["文文", "文文文文"]}), COUNTERS
    )
    table = measures.compression(counts, list(COUNTERS), 50, 0).set_index(["language", "tokenizer"])
    assert table.loc[
        ("en", "characters"), ["bytes_per_token", "low", "high", "tokens_per_character"]
    ].tolist() == [
        1,
        1,
        1,
        1,
    ]
    assert table.loc[("zh", "pairs"), ["bytes_per_token", "low", "high"]].tolist() == [6, 6, 6]
    assert table.loc[("zh", "pairs"), "tokens_per_character"] == 0.5


def test_a_constant_gain_has_an_interval_without_width():
    counts = measures.token_counts(documents({"en": ["a" * n for n in (2, 40, 600)]}), COUNTERS)
    table = measures.gain(
        counts, {"up": ("pairs", "characters"), "down": ("characters", "pairs")}, 200, 0
    )
    rows = table.set_index("tokenizer")[["gain", "low", "high"]]
    assert rows.loc["up"].tolist() == pytest.approx([100, 100, 100])
    assert rows.loc["down"].tolist() == pytest.approx([-50, -50, -50])
    assert measures.pivot(table, "gain", 1, signed=True).loc["en"].tolist() == [
        "+100.0 [+100.0, +100.0]",
        "−50.0 [−50.0, −50.0]",
    ]


def test_frequent_tokens_are_words_of_the_block_in_order_of_use(small):
    table = measures.frequent_tokens(small, ["文档窗口 文档 window"], 2, 1).set_index("expert")[
        "tokens"
    ]
    assert table["cjk"] == "文档" and table["hangul"] == "none"


def test_the_interval_covers_the_true_ratio_as_often_as_its_level_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        tokens = rng.integers(50, 150, size=60)
        counts = pd.DataFrame(
            {
                "language": "en",
                "page": np.arange(60),
                "num_bytes": tokens * rng.choice([3, 5], 60),
                "t": tokens,
            }
        )
        counts["num_characters"] = counts["num_bytes"]
        row = measures.compression(counts, ["t"], 300, seed).iloc[0]
        covered += row["low"] <= 4 <= row["high"]
    assert 0.88 <= covered / 200 <= 0.99


def test_premium_is_tokens_over_tokens_of_the_same_pages():
    frame = documents({"en": ["abcd", "ab"], "zh": ["文" * 8, "文" * 4]})
    counts = measures.token_counts(frame, COUNTERS)
    table = measures.premium(counts, ["characters"], "en", 50, 0).set_index("language")
    assert table.loc["en", "premium"] == 1
    assert table.loc["zh", ["premium", "low", "high"]].tolist() == [2, 2, 2]


def test_premium_refuses_pages_missing_in_a_language_and_parallel_pages_drops_them():
    counts = measures.token_counts(
        documents({"en": ["abcd", "ab"], "zh": ["文文文文文文文文"]}), COUNTERS
    )
    with pytest.raises(ValueError, match="same pages"):
        measures.premium(counts, ["characters"], "en")
    aligned = measures.parallel_pages(counts, ["en", "zh"])
    assert set(aligned["page"]) == {"p0"}
    assert (
        measures.premium(aligned, ["characters"], "en").set_index("language").loc["zh", "premium"]
        == 2
    )


def test_measures_do_not_depend_on_the_parts_in_which_texts_are_encoded(small, texts, monkeypatch):
    everything = [text for language in texts.values() for text in language]
    joint = peers.joint_bpe(texts, 500)
    unions = {"routed": small.union, "joint": joint, "Mistral": peers.mistral()}

    def measured():
        counters = {name: peers.token_counter(union) for name, union in unions.items()}
        return (
            {name: count(everything) for name, count in counters.items()},
            measures.num_lossless(small, everything),
            measures.frequent_tokens(small, everything, 2, 5).to_dict(),
            measures.unused_share(small, everything).to_dict(),
            measures.bytes_per_token_by_script(everything * 3, unions).to_dict(),
            measures.renyi_efficiencies(unions, everything),
        )

    at_once = measured()
    for module in (measures, peers):
        monkeypatch.setattr(module, "batches", partial(batches, num_characters=100))
    assert repr(measured()) == repr(at_once)  # nan where a block has no ids
    assert at_once[1] == len(everything)


def test_counting_tokens_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no documents"):
        measures.token_counts(documents({"en": ["a"]}).iloc[:0], COUNTERS)


def test_bytes_per_token_by_script_agree_with_the_tokens_of_each_run(small, texts):
    everything = [text for language in texts.values() for text in language] * 3
    table = measures.bytes_per_token_by_script(
        everything, {"routed": small.union, "Mistral": peers.mistral()}
    )
    assert (
        list(table.index) == [expert for expert in EXPERTS if expert in table.index]
        and len(table) >= 4
    )
    sizes = dict.fromkeys(EXPERTS, 0)
    tokens = dict.fromkeys(EXPERTS, 0)
    for text in everything:
        for expert, run in router.route(text):
            sizes[expert] += len(run.encode())
            tokens[expert] += len(small.encode(run))
    for expert in table.index:
        assert table.loc[expert, "routed"] == pytest.approx(sizes[expert] / tokens[expert])


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        st.one_of(st.sampled_from(" \n\tab文か글"), st.characters(exclude_categories=["Cs"])),
        min_size=1,
        max_size=30,
    )
)
def test_mistral_token_starts_cover_any_text(text):
    """`_token_starts` raises if the bytes of the tokens do not add up to those of the text."""
    starts = measures._token_starts(peers.mistral(), [text])[0]
    assert (np.diff(starts) >= 0).all() and starts[-1] < len(text.encode())


def test_unused_share_counts_ids_that_never_occur(small):
    table = measures.unused_share(small, ["aaa"]).set_index("block")
    assert table.loc["byte", "unused"] == 255 / 256
    assert table.loc["byte", "tokens"] == 1
    assert table.loc["cjk", "unused"] == 1


def test_throughput_is_bytes_over_the_best_time():
    ticks = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    assert (
        measures.throughput(lambda texts: [0], ["文" * 1_000_000], clock=lambda: next(ticks)) == 1.5
    )


def test_the_joint_bpe_has_the_requested_size_and_is_lossless(texts):
    joint = peers.joint_bpe(texts, 500)
    assert joint.get_vocab_size() == 500
    for text in ("文档 window \x00é", "<s> </s>"):
        ids = joint.encode(text, add_special_tokens=False).ids
        assert joint.decode(ids, skip_special_tokens=False) == text and min(ids) > 3
    with pytest.raises(ValueError, match="fills only"):
        peers.joint_bpe({"en": ["ab"]}, 5000)


@pytest.mark.parametrize(
    ("code", "tokens"), [("eng", 2273), ("cmn_hans", 3155), ("jpn", 4776), ("kor", 4984)]
)
def test_mistral_counts_the_declaration_of_human_rights_as_an_independent_measurement_did(
    code, tokens
):
    """The expected counts were measured once on the same text without this package."""
    table = pq.read_table(
        REPOSITORY / "data_cards/udhr/data/test.parquet", filters=[("code", "=", code)]
    )
    page = table["html"][0].as_py().decode()
    text = html.unescape(re.sub(r"<[^>]+>", "", page[page.index("<body") :]))
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    assert len(peers.mistral().encode(text)) == tokens
    assert peers.token_counter(peers.mistral())([text]) == [tokens]


def test_mistral_has_32000_ids():
    assert peers.mistral().vocab_size() == 32000


def test_round_trips_are_counted_by_text(small, texts):
    sample = [text for language in texts.values() for text in language[:2]]
    assert measures.num_equal_both_ways(small, sample) == len(sample)
    assert measures.num_lossless(small, [*sample, "\x00</s>"]) == len(sample) + 1


def test_languages_are_sorted_with_the_named_ones_first_and_pages_stay_in_order():
    frame = documents({"zh": ["a", "b"], "de": ["c"], "en": ["d"], "code": ["e"]})
    order = measures.sort_by_language(frame, first=["en", "zh"])["id"].tolist()
    assert order == ["en/0", "zh/0", "zh/1", "code/0", "de/0"]


def test_renyi_efficiency_follows_its_definition():
    assert measures.renyi_efficiency(np.array([7, 7, 7, 7]), 4) == pytest.approx(1.0)
    assert measures.renyi_efficiency(np.array([5, 0, 0]), 8) == pytest.approx(0.0)
    # Order 2: minus the logarithm of the chance that two tokens are the same id.
    counts = np.array([3, 1])
    expected = -np.log(0.75**2 + 0.25**2) / np.log(16)
    assert measures.renyi_efficiency(counts, 16, order=2) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no token was counted"):
        measures.renyi_efficiency(np.zeros(4), 4)


def test_renyi_efficiencies_count_the_tokens_of_every_kind_of_tokenizer(small):
    text = "The window of the document."
    found = measures.renyi_efficiencies({"ours": small.union, "Mistral": peers.mistral()}, [text])
    ids = {"ours": small.encode(text), "Mistral": peers.mistral().encode(text)}
    sizes = {"ours": small.vocab_size, "Mistral": 32_000}
    assert found == {
        name: measures.renyi_efficiency(np.bincount(ids[name]), sizes[name]) for name in ids
    }
