"""Checkpoint folders with one thing changed: each loads with transformers' logits or is refused by
name.

    pytest -m fuzz tests/fuzz/test_checkpoints.py                # 2,000 folders, seed printed
    python -m tests.fuzz.shards checkpoints --shards 4           # the same, in four processes

The changes: a key left out, added from another architecture's configuration or given an odd value;
bytes of config.json, index or weights cut, flipped or replaced. A few run in every test run.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moxin_lab.model.config import ConfigError, MoxinConfig
from moxin_lab.model.convert import CheckpointError, from_pretrained, save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM
from tests.fuzz.measured import BYTES, SECONDS, Call, check, run_in_child

CALLS = 2_000
LEAST = {
    "loaded": 0.05,
    "ConfigError": 0.05,
    "CheckpointError": 0.05,
    "loaded, refused by transformers": 0.0,
}
CONFIG = MoxinConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    max_position_embeddings=128,
    initializer_range=0.2,
)
# Architectures whose configurations have keys that change a decoder's function.
OTHERS = (
    "cohere",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gpt2",
    "granite",
    "llama",
    "mixtral",
    "mpt",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
)
ODD = (
    *(None, True, False, [], {}, "", "silu", "gelu", [2, 3], {"rope_type": "default"}),
    *(-1, 0, 1, 2, 3, 8, 31, 2**31, 10**18, 10**400, 0.5, 1e-9, 1e308, float("nan")),
    *({"rope_type": "linear", "factor": 2.0}, {"rope_theta": 500.0}, ["full_attention"] * 3),
)


def foreign_values() -> list[tuple[str, Any]]:
    """Keys and values of the other architectures' configurations, as they write them."""
    pairs: list[tuple[str, Any]] = []
    for kind in OTHERS:
        values = json.loads(AutoConfig.for_model(kind).to_json_string(use_diff=False))
        pairs += [(name, value) for name, value in values.items() if name != "model_type"]
    return pairs


def change_values(values: dict[str, Any], rng: random.Random, foreign: list) -> None:
    name = rng.choice(sorted(values))
    kind = rng.randrange(4)
    if kind == 0:
        del values[name]
    elif kind == 1:
        values[name] = rng.choice(ODD)
    elif kind == 2:
        name, value = rng.choice(foreign)
        values[name] = value
    else:
        values[rng.choice(foreign)[0]] = rng.choice(ODD)


def change_bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(min(len(content), 2500))  # of the header; weights have no wrong bytes
    kind = rng.randrange(4)
    if kind == 0:
        del content[at:]
    elif kind == 1:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        content[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    else:
        content = bytearray(rng.choice((b"", b"[]", b"{}", b"<html>", b"null", b"PK\x03\x04")))
    path.write_bytes(content)


def build(folder: Path, rng: random.Random, foreign: list) -> str:
    """Write a checkpoint with one change (rarely two) into `folder`; says what was changed."""
    model = MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(5))
    sharded = rng.random() < 0.3
    save_pretrained(model, folder, max_shard_size=20_000 if sharded else "5GB")
    if rng.random() < 0.75:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        if rng.random() < 0.3:
            values |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
            values["sliding_window"] = None
        for _ in range(1 + (rng.random() < 0.2)):
            change_values(values, rng, foreign)
        path.write_text(json.dumps(values))
        return path.read_text()
    path = rng.choice(sorted(folder.iterdir()))
    change_bytes(path, rng)
    return f"{path.name}: {path.read_bytes()[:300]!r}"


@torch.no_grad()
def transformers_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()(ids).logits


@torch.no_grad()
def outcome_of(folder: Path, theirs: Callable[[Path, torch.Tensor], torch.Tensor]) -> str:
    """Load `folder`; what happened. Fails on any exception but the documented ones, on a call above
    the limits, and on logits that differ from transformers'.
    """
    process = psutil.Process()
    before, began = process.memory_info().rss, time.process_time()
    try:
        model = from_pretrained(folder)
    except (ConfigError, CheckpointError) as error:
        assert str(folder) in str(error), f"the folder is not named: {error}"
        return type(error).__name__
    finally:
        assert time.process_time() - began < SECONDS
        assert process.memory_info().rss - before < BYTES
    length = min(30, model.config.max_position_embeddings)
    ids = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(0))
    try:
        expected = theirs(folder, ids)
    except Exception:  # noqa: BLE001 - transformers refuses some values that change nothing
        return "loaded, refused by transformers"
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=2e-5, equal_nan=True)
    return "loaded"


def try_one(folder: Path, seed: int, number: int, foreign: list) -> str:
    """Build folder `number` of this seed and load it; the folder stays where something is wrong."""
    changed = build(folder, random.Random(f"{seed} {number}"), foreign)
    try:
        outcome = outcome_of(folder, transformers_logits)
    except Exception as error:
        raise AssertionError(f"{changed}: {type(error).__name__}: {error}") from error
    shutil.rmtree(folder)
    return outcome


def campaign(count: int, seed: int, folder: Path) -> Iterator[Call]:
    foreign = foreign_values()
    save_pretrained(MoxinForCausalLM(CONFIG), folder / "whole")
    outcome_of(folder / "whole", transformers_logits)  # imports, which no call is to pay for
    for number in range(count):
        one = folder / str(number)
        yield Call(str(one), partial(try_one, one, seed, number, foreign), ())


def test_eighty_changed_checkpoints_load_as_in_transformers_or_are_refused(tmp_path: Path) -> None:
    check(run_in_child(campaign, 80, tmp_path, seed=0), 80, LEAST)


@pytest.mark.fuzz
def test_two_thousand_changed_checkpoints_load_as_in_transformers_or_are_refused(
    tmp_path: Path,
) -> None:
    check(run_in_child(campaign, CALLS, tmp_path), CALLS, LEAST)


def test_the_campaign_sees_a_key_that_is_dropped_in_silence(tmp_path: Path) -> None:
    save_pretrained(MoxinForCausalLM(CONFIG), tmp_path)
    path = tmp_path / "config.json"

    def windowless(folder: Path, ids: torch.Tensor) -> torch.Tensor:
        values = {**json.loads(path.read_text()), "sliding_window": None}
        path.write_text(json.dumps(values))
        return transformers_logits(folder, ids)

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        outcome_of(tmp_path, windowless)
