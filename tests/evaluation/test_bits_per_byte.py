"""Bits per byte: every byte is scored once, whatever the windows and batches."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from moxin_lab.evaluation.bits_per_byte import (
    bits_per_byte,
    bits_per_byte_by_group,
    document_losses,
    encode_documents,
    prefix_token_id,
    windows,
)
from moxin_lab.pretraining import pools
from tests.posttraining.examples import make_tokenizer

VOCAB = 300


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        max_position_embeddings=64,
    )
    return MistralForCausalLM(config).eval()


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(4, VOCAB, size=n).tolist() for n in (5, 1, 17, 40, 0, 33, 8, 64, 100)]


def uniform(input_ids):
    return torch.zeros(*input_ids.shape, VOCAB)


@given(num_tokens=st.integers(0, 200), context=st.integers(1, 64), data=st.data())
@settings(max_examples=200, deadline=None)
def test_windows_score_every_token_once_in_order(num_tokens, context, data):
    stride = data.draw(st.integers(1, context))
    scored = [
        i
        for start, end, count in windows(num_tokens, context, stride)
        for i in range(end - count, end)
    ]
    assert scored == list(range(num_tokens))
    for i, (start, end, count) in enumerate(windows(num_tokens, context, stride)):
        assert end - start <= context
        assert i == 0 or end - start - count >= context - stride


def test_losses_equal_one_unpadded_pass_when_the_document_fits(model, documents):
    losses = document_losses(model, documents, context=128, bos_id=1, batch_tokens=200)
    for tokens, loss in zip(documents, losses, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[1, *tokens]])).logits[0, :-1]
        expected = (
            torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum").item()
            if tokens
            else 0.0
        )
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stride", [None, 1, 16])
def test_losses_do_not_depend_on_batching_or_order(model, documents, stride):
    one_by_one = document_losses(
        model, documents, context=16, bos_id=1, stride=stride, batch_tokens=1
    )
    batched = document_losses(
        model, documents, context=16, bos_id=1, stride=stride, batch_tokens=500
    )
    backwards = document_losses(
        model, documents[::-1], context=16, bos_id=1, stride=stride, batch_tokens=70
    )[::-1]
    np.testing.assert_allclose(batched, one_by_one, rtol=1e-5)
    np.testing.assert_allclose(backwards, one_by_one, rtol=1e-5)


@pytest.mark.parametrize(
    ("context", "stride"), [(200, None), (16, None), (16, 3), (16, 16), (1, 1)]
)
def test_uniform_model_gives_log2_of_the_vocabulary_times_tokens_over_bytes(
    documents, context, stride
):
    nats = document_losses(
        uniform, documents, context=context, bos_id=1, stride=stride, batch_tokens=64
    )
    num_bytes = np.array([3 * len(tokens) + 1 for tokens in documents])
    tokens = sum(map(len, documents))
    assert bits_per_byte(nats, num_bytes) == pytest.approx(
        math.log2(VOCAB) * tokens / num_bytes.sum(), rel=1e-6
    )


def test_padding_never_enters_the_loss(documents):
    def certain_of_padding(input_ids):
        # Rows are padded with bos: a model that predicts bos would gain if padding were scored.
        logits = torch.zeros(*input_ids.shape, VOCAB)
        logits[..., 1] = 30.0
        return logits

    losses = document_losses(
        certain_of_padding, documents, context=200, bos_id=1, batch_tokens=10_000
    )
    np.testing.assert_allclose(losses, [30.0 * len(tokens) for tokens in documents], rtol=1e-6)


def test_long_documents_use_the_stated_context(model):
    tokens = np.random.default_rng(1).integers(4, VOCAB, size=40).tolist()
    nats = document_losses(model, [tokens], context=16, bos_id=1, stride=8)[0]
    sequence = [1, *tokens]
    expected = 0.0
    for i in range(1, len(sequence)):
        # The last window starts at 24, as 40 = 16 + 3 * 8.
        start = 0 if i <= 16 else max(0, 8 * math.ceil((i - 16) / 8))
        with torch.no_grad():
            logits = model(torch.tensor([sequence[start:i]])).logits[0, -1]
        expected -= torch.log_softmax(logits, -1)[sequence[i]].item()
    assert nats == pytest.approx(expected, rel=1e-5)


def test_progress_counts_windows_and_training_mode_is_restored(model, documents):
    seen = []
    model.train()
    document_losses(
        model,
        documents,
        context=16,
        bos_id=1,
        batch_tokens=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert model.training
    model.eval()
    assert seen[-1][0] == seen[-1][1] == sum(len(windows(len(t), 16, 8)) for t in documents)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_group_table_sums_before_dividing_and_has_an_interval_per_group():
    nats, num_bytes = np.array([10.0, 90.0, 5.0]) * math.log(2), np.array([10, 30, 20])
    table = bits_per_byte_by_group(nats, num_bytes, ["zh", "zh", "en"], seed=0).set_index("group")
    assert list(table.index) == ["zh", "en"]
    assert table.loc["zh", "bits_per_byte"] == pytest.approx(100 / 40)
    assert table.loc["zh", "low"] <= 100 / 40 <= table.loc["zh", "high"]
    assert table.loc["en", ["bits_per_byte", "low", "high"]].tolist() == pytest.approx([0.25] * 3)
    assert (table["documents"].tolist(), table["bytes"].tolist()) == ([2, 1], [40, 20])


class LossyTokenizer:
    added_tokens_decoder: ClassVar[dict] = {}
    unk_token_id = None

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) % 128 for c in text] for text in texts]}

    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))


def test_a_lossy_tokenizer_is_refused():
    assert encode_documents(LossyTokenizer(), ["plain"]) == [[ord(c) for c in "plain"]]
    with pytest.raises(ValueError, match="document 1 changes"):
        encode_documents(LossyTokenizer(), ["plain", "漢字"])


def test_a_special_token_that_a_text_spells_is_text_as_in_training():
    tokenizer = make_tokenizer(template=False)
    texts = ["a </s> b", "<s>", "<pad>x"]
    tokens = encode_documents(tokenizer, texts)
    assert not {*tokenizer.all_special_ids} & {token for ids in tokens for token in ids}
    trained = pools.tokenize(texts, ["a", "b", "c"], tokenizer)  # bos, document, eos
    assert [id for ids in tokens for id in [1, *ids, 2]] == trained.ids.tolist()


def test_a_document_is_preceded_by_the_tokenizers_bos_or_else_by_its_eos():
    tokenizer = make_tokenizer(template=False)
    assert prefix_token_id(tokenizer) == tokenizer.bos_token_id == 1
    tokenizer.bos_token = None
    assert prefix_token_id(tokenizer) == tokenizer.eos_token_id == 2
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither bos nor eos"):
        prefix_token_id(tokenizer)
