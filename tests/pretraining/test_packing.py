"""Guarantees of moxin_lab.pretraining.packing and pools."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from moxin_lab.model.many_texts import RANKS
from moxin_lab.model.plain_text import ControlTokenError
from moxin_lab.pretraining import results
from moxin_lab.pretraining.packing import (
    IGNORE_INDEX,
    Pool,
    TrainingStream,
)
from moxin_lab.pretraining.pools import (
    Tokens,
    in_mixtures,
    pool_of_documents,
    tokenize,
    tokenize_pools,
)
from moxin_lab.tokenizer import files as tokenizer_files
from tests.posttraining.examples import make_tokenizer

RELEASED_TOKENIZER = (
    Path(__file__).parents[2] / "reports" / "released" / "tokenizer-32k" / "tokenizer"
)
BOS, EOS = 1, 2


def make_tokens(lengths, first_id=10):
    """Documents of given inner lengths whose inner ids are all different, so every token can be
    told from every other.
    """
    pieces, next_id = [], first_id
    for length in lengths:
        pieces.append(np.array([BOS, *range(next_id, next_id + length), EOS], dtype=np.int32))
        next_id += length
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    return Tokens(
        np.concatenate(pieces),
        offsets,
        np.ones(len(pieces), dtype=np.int64),
        [f"d{i}" for i in range(len(pieces))],
        5000,
    )


def phase(steps, length, **mixture):
    return SimpleNamespace(name=f"T{length}", steps=steps, sequence_length=length, mixture=mixture)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    row=st.integers(2, 12),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_token_but_bos_is_a_target_exactly_once_an_epoch(lengths, row, seed):
    tokens = make_tokens(lengths)
    epoch = int(tokens.offsets[-1])
    rows = -(-epoch // row)
    stream = TrainingStream({"a": tokens}, [phase(rows, row, a=1)], tokens_per_step=row, seed=seed)
    targets = np.concatenate([stream.batch(step)["labels"].ravel() for step in range(rows)])[:epoch]
    # The stream's first token is a <s>; the label at position p is token p + 1, so one epoch of
    # labels covers tokens 1 .. epoch.
    real = targets[targets != IGNORE_INDEX]
    expected = np.sort(tokens.ids[tokens.ids != BOS])
    assert np.array_equal(np.sort(real), expected)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=8),
    row=st.integers(2, 12),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_label_crosses_documents_and_labels_are_the_next_input(lengths, row, seed):
    stream = TrainingStream(
        {"a": make_tokens(lengths)}, [phase(6, row, a=1)], tokens_per_step=row, seed=seed
    )
    for step in range(6):
        batch = stream.batch(step)
        labels, documents, inputs = (
            batch[name] for name in ("labels", "document_ids", "input_ids")
        )
        assert not np.isin(labels, [BOS]).any()
        inside = labels[:, :-1] != IGNORE_INDEX
        assert np.array_equal(labels[:, :-1][inside], inputs[:, 1:][inside])
        assert np.array_equal(documents[:, :-1][inside], documents[:, 1:][inside])
        # Where a document ends (eos), nothing is predicted.
        assert (labels[inputs == EOS] == IGNORE_INDEX).all()


def test_a_batch_is_the_same_whatever_was_asked_before():
    pools = {"a": make_tokens([5, 3, 8, 1]), "b": make_tokens([2, 9, 4], first_id=100)}
    phases = [phase(5, 6, a=2, b=1), phase(4, 12, a=1, b=3)]
    one = TrainingStream(pools, phases, tokens_per_step=24, seed=3)
    other = TrainingStream(pools, phases, tokens_per_step=24, seed=3)
    forwards = [one.batch(step) for step in range(9)]
    backwards = [other.batch(step) for step in reversed(range(9))][::-1]
    for left, right in zip(forwards, backwards, strict=True):
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_parts_of_a_step_put_together_are_the_step():
    stream = TrainingStream(
        {"a": make_tokens([5, 3, 8, 1])}, [phase(3, 4, a=1)], tokens_per_step=32, seed=0
    )
    whole = stream.batch(1)
    for parts in (2, 4, 8):
        pieces = [stream.batch(1, part=part, parts=parts) for part in range(parts)]
        for name in ("input_ids", "labels", "document_ids"):
            assert np.array_equal(np.concatenate([piece[name] for piece in pieces]), whole[name])
        assert all(piece["num_targets"] == whole["num_targets"] for piece in pieces)


def test_mixture_shares_are_exact_in_every_phase():
    pools = {"a": make_tokens([50]), "b": make_tokens([50], first_id=1000)}
    stream = TrainingStream(
        pools, [phase(10, 5, a=3, b=1), phase(10, 10, a=1, b=4)], tokens_per_step=20, seed=1
    )
    first, second = stream.phases
    assert [int((first.pool_of_row == index).sum()) for index in (0, 1)] == [30, 10]
    assert [int((second.pool_of_row == index).sum()) for index in (0, 1)] == [4, 16]


def test_text_repeats_only_when_its_pool_is_used_up():
    tokens = make_tokens([7] * 20)  # 180 tokens
    stream = TrainingStream(
        {"a": tokens}, [phase(5, 6, a=1), phase(10, 12, a=1)], tokens_per_step=12, seed=0
    )
    assert stream.consumed == {"a": 180}
    targets = np.concatenate([stream.batch(step)["labels"].ravel() for step in range(15)])
    inner = targets[targets > EOS]
    assert len(np.unique(inner)) == len(inner) == 140


def test_tokens_read_are_the_inputs_of_all_batches_without_bos_and_eos():
    tokens = make_tokens([4, 6, 8, 3, 9, 5])
    stream = TrainingStream(
        {"a": tokens}, [phase(2, 7, a=1), phase(3, 14, a=1)], tokens_per_step=14, seed=5
    )
    inputs = np.concatenate([stream.batch(step)["input_ids"].ravel() for step in range(5)])
    read = stream.tokens_read("a")
    assert np.array_equal(np.concatenate(read), inputs[inputs > EOS])
    documents = {tuple(tokens.document(index)[1:-1]) for index in range(len(tokens))}
    assert all(tuple(piece) in documents for piece in read[:-1])


def test_a_pool_of_which_no_row_is_read_has_no_text_that_was_read():
    pools = {"a": make_tokens([20] * 9), "b": make_tokens([20] * 9, 500)}
    stream = TrainingStream(pools, [phase(1, 8, a=99, b=1)], tokens_per_step=16, seed=0)
    assert stream.consumed["b"] == 0 and stream.tokens_read("b") == []


def test_order_differs_between_epochs_seeds_and_pools():
    tokens = make_tokens([1] * 40)
    orders = [
        Pool(tokens, seed, name)._epoch_order(epoch)[0].tolist()
        for seed, name, epoch in ((0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0))
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_a_missing_pool_and_uneven_steps_are_refused_with_the_names():
    tokens = make_tokens([5])
    with pytest.raises(ValueError, match="draws from b; there are a"):
        TrainingStream({"a": tokens}, [phase(1, 4, b=1)], tokens_per_step=8, seed=0)
    with pytest.raises(ValueError, match="10 tokens per step are not whole rows of 4"):
        TrainingStream({"a": tokens}, [phase(1, 4, a=1)], tokens_per_step=10, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 5, 5, 9])}, "offsets do not cut 9 tokens into 3 documents"),
        ({"offsets": np.array([0, 6, 4, 9])}, "offsets do not cut"),
        ({"offsets": np.array([0, 3, 5, 8])}, "offsets do not cut"),
        ({"offsets": np.array([0])}, "pool 'a' has no document"),
        ({"names": ["x"]}, "3 documents have 1 ids"),
        ({"ids": np.array([0, 1, 2, 3, 999, 5, 6, 7, 8])}, "document y has the token 999"),
        ({"ids": np.array([0, 1, 2, 3, 4, 5, -1, 7, 8])}, "document z has the token -1"),
    ],
)
def test_a_damaged_pool_is_refused_before_the_first_step(changes, message):
    arrays = {
        "ids": np.arange(9, dtype=np.int32),
        "offsets": np.array([0, 3, 5, 9]),
        "num_bytes": np.ones(3, dtype=np.int64),
        "names": ["x", "y", "z"],
        "vocab_size": 300,
    }
    TrainingStream({"a": Tokens(**arrays)}, [phase(1, 4, a=1)], tokens_per_step=8, seed=0)
    with pytest.raises(ValueError, match=message):
        TrainingStream(
            {"a": Tokens(**{**arrays, **changes})}, [phase(1, 4, a=1)], tokens_per_step=8, seed=0
        )


def test_equal_streams_have_equal_fingerprints_and_others_do_not():
    def fingerprint(lengths=(5, 9), seed=0, steps=2, **mixture):
        pools = {"a": make_tokens(list(lengths)), "b": make_tokens([7])}
        phases = [phase(steps, 4, **(mixture or {"a": 1}))]
        return TrainingStream(pools, phases, tokens_per_step=8, seed=seed).fingerprint()

    assert fingerprint() == fingerprint()
    others = [
        fingerprint(lengths=(5, 10)),
        fingerprint(seed=1),
        fingerprint(steps=3),
        fingerprint(a=1, b=1),
    ]
    assert len({fingerprint(), *others}) == 5


DOCUMENTS = pd.DataFrame(
    [("help_pages", "en"), ("conversations", "en"), ("slimpajama", "en"), ("code_samples", "code")],
    columns=["source", "language"],
)


def test_a_document_is_in_the_pool_of_its_source_where_a_mixture_names_it_else_of_its_language():
    by_language = pool_of_documents(DOCUMENTS, [phase(1, 4, en=1), phase(1, 4, conversations=1)])
    assert by_language.tolist() == ["en", "conversations", "en", "code"]
    by_source = pool_of_documents(DOCUMENTS, [phase(1, 4, slimpajama=1, code=1)])
    assert by_source.tolist() == ["en", "en", "slimpajama", "code"]


def test_benchmark_sets_that_are_switched_off_are_in_no_other_pool():
    off = phase(1, 4, en=1)
    off.benchmark_mixture = {"slimpajama": 1}
    assert pool_of_documents(DOCUMENTS, [off]).tolist() == ["en", "en", "slimpajama", "code"]
    # neither read nor scored, although their language is drawn from
    assert in_mixtures(DOCUMENTS, [off])["source"].tolist() == ["help_pages", "conversations"]


def test_what_no_mixture_names_is_neither_tokenised_nor_scored_and_the_page_says_how_much(
    with_ranks,
):
    languages = ["en", "code", "fi", "ko"]
    train = pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "source": ["help_pages", "code_samples", "help_pages", "conversations"],
            "language": languages,
            "text": ["one", "x = 1", "yksi", "hana"],
            "num_bytes": [3, 5, 4, 4],
        }
    )
    phases = [phase(1, 4, en=1), phase(1, 4, code=1, conversations=1)]
    tokenizer = AutoTokenizer.from_pretrained(with_ranks)
    pools = tokenize_pools(train, tokenizer, phases)
    assert {name: pool.names for name, pool in pools.items()} == {
        "code": ["b"],
        "conversations": ["d"],
        "en": ["a"],
    }
    assert in_mixtures(train, phases)["id"].tolist() == ["a", "b", "d"]
    assert in_mixtures(train[:1], phases)["id"].tolist() == ["a"]  # no held-out conversations
    said = results.not_drawn_in_words(train, pools)
    assert said.startswith("No mixture names the other 1 documents of stage 01, 25 % of its bytes")
    assert "in 1 languages" in said
    every = {"all": tokenize(train["text"].tolist(), train["id"].tolist(), tokenizer)}
    assert results.not_drawn_in_words(train, every).startswith("The mixtures draw from every")


def test_a_mixture_that_draws_from_what_is_not_there_is_refused_with_the_names_there_are():
    message = r"draw from dclm, ja, which .* sources code_samples, .*languages code, en"
    with pytest.raises(ValueError, match=message):
        pool_of_documents(DOCUMENTS, [phase(1, 4, dclm=1), phase(1, 4, ja=1, slimpajama=1)])


def test_tokenize_keeps_text_that_spells_a_control_token_as_text():
    tokenizer = make_tokenizer(template=False)
    tokenizer.add_tokens(["<tool_call>"])  # not special
    texts = ["</s>", "é", "<tool_call>"]
    tokens = tokenize(texts, ["x", "y", "z"], tokenizer)
    for place, text in enumerate(texts):
        ids = tokens.document(place).tolist()
        assert (ids[0], ids[-1]) == (1, 2) and tokenizer.decode(ids[1:-1]) == text
        assert not set(ids[1:-1]) & set(tokenizer.added_tokens_decoder)
    assert tokens.num_bytes.tolist() == [4, 2, 11]
    with pytest.raises(ValueError, match="no documents"):
        tokenize([], [], tokenizer)


@pytest.fixture(scope="module")
def with_ranks(tmp_path_factory):
    """The folder of the released tokenizer with the file of ranks that stage 02 writes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(RELEASED_TOKENIZER, folder, dirs_exist_ok=True)
    tokenizer_files.write_ranks(tokenizer_files.load(RELEASED_TOKENIZER), folder / RANKS)
    return folder


def test_the_file_of_ranks_gives_the_tokens_that_tokenizer_json_gives(with_ranks):
    texts = [
        "The window of 4,096 tokens.\n\n    def f(x):\n        return x</s><s>[INST]",
        "渡邉さんは東京に行きました。모델은 한국어를 읽는다。e\u0301 👩🏽‍💻 नमस्ते",
        "",
        " " * 300_000,  # beyond tiktoken's stack
        *(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))),
    ]
    names = [str(place) for place in range(len(texts))]
    fast, plain = (
        tokenize(texts, names, AutoTokenizer.from_pretrained(folder), batch_size=5)
        for folder in (with_ranks, RELEASED_TOKENIZER)
    )
    np.testing.assert_array_equal(fast.ids, plain.ids)
    np.testing.assert_array_equal(fast.offsets, plain.offsets)
    assert fast.ids.dtype == plain.ids.dtype == np.int32


def test_a_file_of_ranks_that_is_not_of_the_tokenizer_is_refused(with_ranks, tmp_path):
    shutil.copytree(with_ranks, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    lines = (tmp_path / RANKS).read_bytes().splitlines(keepends=True)
    token, rank = lines[-1].split()
    other, other_rank = lines[-2].split()
    swapped = [token + b" " + other_rank + b"\n", other + b" " + rank + b"\n"]
    for changed, message in (
        (lines[:-1], r"tokenizer\.tiktoken is not of the tokenizer.json beside it \(1 tokens"),
        (lines[:-2] + swapped, r"\(4 tokens are in one alone or have another id\)"),
        ([], "is not of the tokenizer.json"),
        (lines[:-1] + [lines[-1][:3]], rf"line {len(lines)} is not a token in base64 and its id"),
        ([b"\n", *lines], r"tokenizer\.tiktoken, line 1 is not a token"),
    ):
        (tmp_path / RANKS).write_bytes(b"".join(changed))
        with pytest.raises(ValueError, match=message):
            tokenize(["a"], ["page-3"], tokenizer)


@pytest.mark.parametrize(
    "added", [{"tokens": ["   "]}, {"tokens": ["the"]}, {"tokens": ["<tool>"]}, {"bos": "the"}]
)
def test_tokens_added_after_loading_count_as_they_do_without_a_file_of_ranks(with_ranks, added):
    texts = ["over   there, the <tool> of", "a\n   b"]

    def result(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(added.get("tokens", []))
        if "bos" in added:
            tokenizer.bos_token = added["bos"]
        try:
            return tokenize(texts, ["x", "y"], tokenizer).ids.tolist()
        except ControlTokenError as error:
            return str(error)

    assert result(with_ranks) == result(RELEASED_TOKENIZER)
