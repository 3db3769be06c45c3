"""Checkpoint folders with one thing changed: each loads with transformers' logits or is refused by
name.

    pytest -m fuzz tests/fuzz/test_checkpoints.py    # 2,000 folders, minutes, seed printed

The changes: a key left out, added from another architecture's configuration or given an odd value;
bytes of config.json, index or weights cut, flipped or replaced. A few run in every test run.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moxin_lab.model.config import ConfigError, MoxinConfig
from moxin_lab.model.convert import CheckpointError, from_pretrained, save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM

SECONDS, BYTES = 2.0, 2**30  # a call's limits
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


def campaign(count: int, seed: int, folder: Path) -> Counter[str]:
    print(f"seed {seed}")
    rng, foreign, outcomes = random.Random(seed), foreign_values(), Counter()
    for number in range(count):
        one = folder / str(number)
        changed = build(one, rng, foreign)
        try:
            outcomes[outcome_of(one, transformers_logits)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, folder {number}: {changed}") from error
    print(dict(outcomes))
    return outcomes


def test_eighty_changed_checkpoints_load_as_in_transformers_or_are_refused(tmp_path: Path) -> None:
    outcomes = campaign(80, 0, tmp_path)
    assert outcomes.total() == 80
    assert min(outcomes[name] for name in ("loaded", "ConfigError", "CheckpointError")) >= 5


@pytest.mark.fuzz
def test_two_thousand_changed_checkpoints_load_as_in_transformers_or_are_refused(
    tmp_path: Path,
) -> None:
    outcomes = campaign(2000, random.randrange(2**32), tmp_path)
    assert outcomes.total() == 2000
    assert min(outcomes[name] for name in ("loaded", "ConfigError", "CheckpointError")) >= 100


def test_the_campaign_sees_a_key_that_is_dropped_in_silence(tmp_path: Path) -> None:
    save_pretrained(MoxinForCausalLM(CONFIG), tmp_path)
    path = tmp_path / "config.json"

    def windowless(folder: Path, ids: torch.Tensor) -> torch.Tensor:
        values = {**json.loads(path.read_text()), "sliding_window": None}
        path.write_text(json.dumps(values))
        return transformers_logits(folder, ids)

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        outcome_of(tmp_path, windowless)
