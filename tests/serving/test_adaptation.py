"""Guarantees of the vertical fine-tune: what is trained, what stays, what is exported."""

import copy
import warnings
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from moxin_lab.lab.artifacts import LabError
from moxin_lab.serving import adaptation
from moxin_lab.serving.answers import Grounding, Source
from moxin_lab.serving.questions import Question

SETTINGS = SimpleNamespace(
    epochs=4, examples_per_step=4, micro_batch_examples=4, learning_rate=2e-2, warmup_ratio=0.0,
    adam_beta1=0.9, adam_beta2=0.99, adam_eps=1e-8, weight_decay=0.0, gradient_clip_norm=1.0,
    precision="32-true", checkpoint_every_steps=1000, alpha_over_rank=2,
)  # fmt: skip
TEXTS = ["Choose Table - Insert.", "Press Del.", "Choose Data - Sort.", "Press Enter."] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    _, tokenizer = adaptation.load(folder)
    rows = adaptation.text_rows(TEXTS, tokenizer, 32)
    scratch = tmp_path_factory.mktemp("scratch")
    with warnings.catch_warnings():  # a library's warning would stand among a notebook's outputs
        warnings.simplefilter("error", FutureWarning)
        adapted, log = adaptation.adapt(folder, rows, SETTINGS, rank=2, seed=0, scratch=scratch)
    return adapted, log, tokenizer


def test_only_the_adapters_are_trained_and_the_loss_on_the_texts_falls(folder, trained):
    adapted, log, tokenizer = trained
    base, _ = adaptation.load(folder)
    inner = adapted.get_base_model()
    kept = dict(inner.named_parameters())
    for name, weight in base.named_parameters():
        wrapped = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(weight, kept[wrapped if wrapped in kept else name])
    few, all_of_base = adaptation.trained_share(adapted)
    assert all_of_base == sum(p.numel() for p in base.parameters())
    assert 0 < few < all_of_base
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    before = adaptation.bits(adaptation.losses(base, tokenizer, TEXTS, 64))
    assert adaptation.bits(adaptation.losses(adapted, tokenizer, TEXTS, 64)) < before - 0.1


def test_the_export_is_an_ordinary_folder_with_the_adapted_models_logits(trained, tmp_path):
    adapted, _, tokenizer = trained
    ids = torch.tensor([tokenizer("Choose Table")["input_ids"]])
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        adaptation.export(copy.deepcopy(adapted), tokenizer, tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
    assert not list(tmp_path.glob("adapter*"))


def test_two_loads_and_an_export_write_nothing(folder, trained, tmp_path, capfd):
    """In a notebook a bar is a widget with an id drawn at random, so two equal runs differ."""
    adapted, _, tokenizer = trained
    adaptation.load(folder)
    adaptation.load(folder)
    adaptation.export(copy.deepcopy(adapted), tokenizer, tmp_path)
    assert capfd.readouterr() == ("", "")
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "Loading weights" in capfd.readouterr().err  # the caller's own bars are as they were


def test_micro_batches_change_no_step(folder, tmp_path):
    _, tokenizer = adaptation.load(folder)
    rows = adaptation.text_rows(TEXTS, tokenizer, 32)
    logs = []
    for size in (4, 1):
        settings = SimpleNamespace(**{**vars(SETTINGS), "micro_batch_examples": size, "epochs": 1})
        folder_of_run = tmp_path / str(size)
        _, log = adaptation.adapt(folder, rows, settings, rank=2, seed=0, scratch=folder_of_run)
        logs.append(log["loss"].to_numpy())
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), atol=1e-5, rtol=1e-5)


def test_loss_is_on_the_answer_of_a_question_and_its_end(folder):
    _, tokenizer = adaptation.load(folder)
    question = Question("How?", "en", frozenset({"a"}), "Press Del.")
    (row,) = adaptation.question_rows([question], tokenizer, 64)
    given, scored = row.tokens[: row.given], row.tokens[row.given :]
    assert tokenizer.decode(given) == "<s>Question: How?\nAnswer:"
    assert tokenizer.decode(scored) == " Press Del.</s>"
    assert adaptation.question_rows([question], tokenizer, 20) == []


def test_more_rows_than_there_are_are_refused_with_the_setting(folder):
    with pytest.raises(LabError, match=r"adaptation: rows: 9 are asked for, 8 there"):
        adaptation.spread([adaptation.Row([1], 1)] * 8, 9)


def test_the_reader_picks_what_the_question_makes_more_likely():
    """A model that knows one thing: after a question with `b`, the letter b."""

    class Knows:
        def parameters(self):
            yield torch.zeros(1)

        def __call__(self, ids):
            logits = torch.zeros((*ids.shape, 128))
            asked = (ids == ord("b")).cumsum(1) > 0
            logits[..., ord("b")] = 5.0 * asked
            return logits

    class Letters:
        bos_token_id, eos_token_id, unk_token_id = 0, 1, None
        added_tokens_decoder = MappingProxyType({})

        def __call__(self, text, **_):
            if isinstance(text, list):
                return {"input_ids": [list(map(ord, each)) for each in text]}
            return {"input_ids": list(map(ord, text))}

    sources = tuple(Source(i, "d", "t", (), i, text) for i, text in enumerate(["aaaa", "bbbb"], 1))
    choose = adaptation.reader(Knows(), Letters())
    chosen = choose([Grounding("b?", sources, ()), Grounding("b?", sources[::-1], ())])
    assert [source.text for source in chosen] == ["bbbb", "bbbb"]
