"""The bench of supervised fine-tuning trains ours and TRL's on the same tokens, and a peer that
cannot run is a row with its reason.
"""

import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from moxin_lab import cli
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    alphabet = ["<unk>", "<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(
        models.BPE({token: index for index, token in enumerate(alphabet)}, [], unk_token="<unk>")
    )
    tokens.pre_tokenizer, tokens.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        ByteLevel(),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    ).save_pretrained(folder)
    config = MoxinConfig(
        vocab_size=len(alphabet),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=512,
        max_position_embeddings=1024,
    )
    save_pretrained(MoxinForCausalLM(config, generator=torch.Generator().manual_seed(0)), folder)
    return folder


def bench(checkpoint, tmp_path, *more):
    file = tmp_path / "sft.json"
    sizes = [
        "--batch",
        "4",
        "--micro-batch",
        "4",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--passes",
        "1",
        "--max-tokens",
        "400",
    ]
    assert (
        cli.main(
            [
                "bench",
                "sft",
                "--model",
                str(checkpoint),
                "--device",
                "cpu",
                *sizes,
                "--json",
                str(file),
                *more,
            ]
        )
        == 0
    )
    return json.loads(file.read_text())


def test_all_rows_do_the_same_work_and_are_timed(checkpoint, tmp_path):
    result = bench(checkpoint, tmp_path)
    assert [(row["what"], row["layout"], row["attention"]) for row in result["rows"]] == [
        ("moxin-lab", "padded", "auto (sdpa)"),
        ("moxin-lab", "padded", "sdpa"),
        ("moxin-lab", "packed", "auto (sdpa)"),
        ("TRL SFTTrainer", "padded", "sdpa"),
    ]
    losses = [row["first_loss"] for row in result["rows"]]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-3)  # TRL's log rounds
    assert all(row["steps"] == 2 and row["tokens_per_second"] > 0 for row in result["rows"])
    assert result["conversations"] == 12


def test_a_peer_that_is_not_installed_is_a_row_with_its_reason(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    rows = bench(checkpoint, tmp_path)["rows"]
    assert "trl" in rows[-1]["reason"] and all("reason" not in row for row in rows[:-1])


def test_two_visible_gpus_raise_an_error_because_only_the_peer_would_use_both(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cli.main(["bench", "sft", "--model", str(checkpoint), "--device", "cuda"]) == 1
    assert "CUDA_VISIBLE_DEVICES" in capsys.readouterr().err
