"""Guarantees of stage 05's tables: what is coloured is what carries loss, judgements stay with
their rows.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest

from moxin_lab.evaluation.statistics import paired_bootstrap, wilson_interval
from moxin_lab.posttraining import chat, figures, sampling, sft, tables
from tests.posttraining.examples import make_conversations, make_model, make_tokenizer

TOKENIZER = make_tokenizer()


def make_rows(count=6):
    rows = pd.DataFrame(
        {"messages": [np.array(messages, dtype=object) for messages in make_conversations(count)]}
    )
    answers = [conversation[-1]["content"] for conversation in tables.conversations(rows)]
    rules = [
        json.dumps({"kind": "exact", "answer": answer}) if number % 2 else None
        for number, answer in enumerate(answers)
    ]
    return rows.assign(
        task=["a", "b"] * (count // 2),
        language=["en", "ko"] * (count // 2),
        verifier=rules,
        difficulty=1,
    )


def test_marked_text_is_the_answers_and_their_end_tokens():
    conversation = make_conversations(1)[0]
    encoded, _ = chat.encode(conversation, TOKENIZER, max_tokens=256)
    page = tables.loss_tokens_html(encoded, TOKENIZER)
    plain = [
        re.sub("<[^>]+>", "", piece)
        for piece in re.findall(r"<mark.*?</mark>|<span.*?</span>", page)
    ]
    marked = "".join(re.sub("<[^>]+>", "", piece) for piece in re.findall(r"<mark.*?</mark>", page))
    expected = "".join(
        f"{message['content']}</s>" for message in conversation if message["role"] == "assistant"
    )
    assert marked.replace("·", " ").replace("&lt;", "<").replace("&gt;", ">") == expected
    assert (
        "".join(plain)
        .replace("·", " ")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("↵", "\n")
        == (chat.render(conversation, "</s>")[0])
    )


def test_judgements_stay_with_their_rows_when_some_rows_were_omitted():
    rows, model = make_rows(), make_model()
    broken = tables.conversations(rows)
    broken[2] = broken[2][:-1]
    encoded, _ = chat.encode_all(broken, TOKENIZER, max_tokens=256, max_refused_share=0.5)
    found = tables.judge(
        model, TOKENIZER, rows, encoded, max_new_tokens=5, batch_tokens=512, batch_size=4
    )
    assert found.index.tolist() == [0, 1, 3, 4, 5]
    assert found["right"].isna().tolist() == [True, False, False, True, False]
    alone = sampling.respond(model, TOKENIZER, [broken[3][:-1]], max_new_tokens=5)[0]
    assert (found.loc[3, "text"], found.loc[3, "tokens"]) == (alone.text, alone.num_tokens)
    only, _ = chat.encode(broken[3], TOKENIZER, max_tokens=256)
    assert found.loc[3, "nats"] == pytest.approx(
        sft.answer_nats(model, [only], batch_tokens=512)[0][0], rel=1e-5
    )


def test_shares_and_baseline_count_only_rows_with_a_verifier():
    rows = make_rows()
    majority = tables.majority(rows, rows)
    assert majority["right"].isna().tolist() == rows["verifier"].isna().tolist()
    right = pd.DataFrame({"right": pd.array([None, 1.0, None, 0.0, None, 1.0], dtype="Float64")})
    table = tables.exact_match({"model": right}, wilson_interval)
    assert table.loc["model", ["right", "rows"]].tolist() == [2, 3]
    assert table.loc["model", "value"] == pytest.approx(2 / 3)
    assert table.loc["model", "low"] < 2 / 3 < table.loc["model", "high"]
    assert tables.by_task(rows, {"model": right}).index.tolist() == ["b"]


def judged(right, tokens=3):
    rows = len(right)
    return pd.DataFrame(
        {
            "right": pd.array(right, dtype="Float64"),
            "nats": [2.0] * rows,
            "targets": [4] * rows,
            "tokens": [tokens] * rows,
            "ended": [True] * rows,
        }
    )


def test_a_contrast_counts_half_for_ties_and_pairs_its_rows():
    frames = {"a": judged([1, 1, 0, np.nan]), "b": judged([1, 0, 0, np.nan])}
    table = tables.contrasts(frames, [("a", "b"), ("b", "a")], paired_bootstrap, seed=0)
    row = table.loc["a against b"]
    assert row["difference"] == pytest.approx(1 / 3) and row["low"] <= row["difference"]
    assert row["win rate"] == pytest.approx(1 / 3 + 1 / 3) and row["ties"] == pytest.approx(2 / 3)
    assert table.loc["b against a", "win rate"] == pytest.approx(1 / 3)


def test_the_answers_table_has_loss_per_token_and_mean_length():
    frames = {"a": judged([1, 0], tokens=5)}
    table = tables.answers(frames, tables.exact_match(frames, wilson_interval))
    assert table.loc["a"].tolist() == [0.5, 0.5, 5, 1]


def test_samples_are_the_first_rows_of_each_language_in_order():
    rows = make_rows(8)
    texts = pd.DataFrame({"text": [f"answer {number}" for number in range(8)]})
    shown = tables.samples(rows, {"SFT": texts}, each=2)
    assert shown.index.tolist() == ["en", "en", "ko", "ko"]
    assert shown["SFT"].tolist() == ["answer 0", "answer 2", "answer 1", "answer 3"]


def test_rows_are_spread_evenly_and_long_texts_are_marked_as_cut():
    rows = make_rows(10)
    assert tables.conversations(tables.spread(rows, 4)) == [
        tables.conversations(rows)[place] for place in (0, 2, 5, 7)
    ]
    assert tables.spread(rows, None) is rows and len(tables.spread(rows, 99)) == 10
    texts = pd.DataFrame({"text": ["x" * 30] * 10})
    assert set(tables.samples(rows, {"SFT": texts}, each=1)["SFT"]) == {"x" * 19 + "…"}


def test_the_exported_checkpoint_has_the_template_and_the_weights(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tokenizer(template=False).save_pretrained(tmp_path / "tokenizer")
    model = sft.with_dropout(make_model(), 0.1)
    assert (model.config.attention_dropout, model.config.mlp_dropout) == (0.1, 0.1)
    sft.export(model, tmp_path / "tokenizer", tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    chat.require_template(tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "chat")
    assert loaded.config.attention_dropout == 0.0
    for name, tensor in model.state_dict().items():
        assert (loaded.state_dict()[name] == tensor).all()


def test_the_pull_of_a_pair_is_the_sigmoid_of_beta_times_its_margin():
    margins = [-1.0, 0.0, 2.0]
    pull = tables.preference_push((0.1, 5.0), margins)
    for beta in pull.columns:
        expected = [1 / (1 + np.exp(beta * margin)) for margin in margins]
        assert pull[beta].tolist() == pytest.approx(expected, rel=1e-4)
    words = figures.preference_push_alt(pull)
    assert "beta 5: 0.99 at -1 nats, 0.00 at 2" in words
    assert len(figures.preference_push(pull).axes[0].get_legend().get_texts()) == 2


def test_answers_of_one_length_move_alike_under_both_losses():
    table = tables.preference_example(3, 3)
    assert table.loc["plain DPO", "chosen"] == pytest.approx(3 * table.loc["per token", "chosen"])
    assert table.loc["plain DPO", "rejected"] == -table.loc["plain DPO", "chosen"]


def test_a_difference_is_named_only_where_the_interval_leaves_zero():
    rows = {"a against b": (0.3, 0.2, 0.4), "a against c": (-0.1, -0.2, -0.05)}
    rows["a against d"] = (0.01, -0.02, 0.04)
    table = pd.DataFrame(rows, index=["difference", "low", "high"]).T
    assert tables.contrasts_in_words(table) == (
        "a against b: better (+0.300); a against c: worse (-0.100); "
        "a against d: no difference seen (+0.010)."
    )


def test_the_finding_of_preference_training_is_its_first_and_last_step():
    log = pd.DataFrame({"correct": [8, 20, 24], "pairs": [32, 32, 32]})
    assert "plain 25% to 75%." in figures.dpo_finding({"plain": log})


def test_what_was_omitted_is_told_by_reason_and_nothing_omitted_is_told_too():
    lost = pd.DataFrame({"pairs": [0, 3], "share": [0.0, 0.015]}, index=["malformed", "too long"])
    assert tables.omitted_in_words(lost) == (
        "Omitted or shortened pairs, by reason: too long: 3 (1.50%)."
    )
    none = tables.omitted_in_words(lost.iloc[:1])
    assert none == "Omitted or shortened: none of the pairs. Looked for: malformed."
