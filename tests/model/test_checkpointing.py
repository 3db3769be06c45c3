"""Activation checkpointing: the same step bit for bit, fewer bytes held, and exactly the
recomputation that it documents.
"""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from moxin_lab.model.cache import RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import ACTIVATION_CHECKPOINTING, Block, MoxinForCausalLM
from moxin_lab.model.expansion import expand
from moxin_lab.model.held import Watch, by_checkpointing

LAYERS = 4


def make(name: str, **changes: Any) -> MoxinForCausalLM:
    values: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 112,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    config = MoxinConfig(**{**values, **changes})
    model = MoxinForCausalLM(
        config, generator=torch.Generator().manual_seed(5), activation_checkpointing=name
    )
    return model.train()


def ids(length: int = 31) -> Tensor:
    return torch.randint(61, (2, length), generator=torch.Generator().manual_seed(0))


def loss_of(model: MoxinForCausalLM, tokens: Tensor, **options: Any) -> Tensor:
    logits = model(tokens[:, :-1], **options)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("name", ["selective", "full"])
def test_losses_and_gradients_are_the_same_to_the_bit(
    name: str, packed: bool, backend: str, dropout: float
) -> None:
    options = {"document_ids": torch.arange(30).expand(2, 30) // 12} if packed else {}
    models = [make(one, attention_dropout=dropout, mlp_dropout=dropout) for one in ("none", name)]
    losses = []
    for model in models:
        model.attention_backend = backend
        torch.manual_seed(11)
        losses.append([])
        for _ in range(2):  # the second step shows that the random state continues as without
            loss = loss_of(model, ids(), **options)
            loss.backward()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]
    assert (losses[0][0] != losses[0][1]) == (dropout > 0)
    for (parameter, expected), ours in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(ours.grad, expected.grad), parameter


@pytest.mark.parametrize("name", ["selective", "full"])
def test_mixed_precision_gives_the_same_step(name: str) -> None:
    gradients = []
    for one in ("none", name):
        model = make(one, mlp_dropout=0.2)
        torch.manual_seed(11)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, ids())
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, ours in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


def test_each_step_of_checkpointing_holds_fewer_bytes_for_the_backward_pass() -> None:
    held = {}
    for name in ACTIVATION_CHECKPOINTING:
        model, tokens = make(name), ids()
        watch = Watch()
        with watch:
            loss = loss_of(model, tokens)
        gc.collect()
        held[name] = watch.alive(but=[*model.parameters(), tokens])
        loss.backward()
    assert held["full"] < 0.6 * held["selective"], held
    assert held["selective"] < 0.7 * held["none"], held
    measured = by_checkpointing(make("none").config, length=31, seed=0)
    assert measured["bytes held"].is_monotonic_decreasing and measured["same gradients"].all()
    # One more block costs its input alone: [2, 30, 32] in float32.
    deeper, tokens, watch = make("full", num_hidden_layers=LAYERS + 1), ids(), Watch()
    with watch:
        loss = loss_of(deeper, tokens)
    gc.collect()
    assert loss.requires_grad
    assert watch.alive(but=[*deeper.parameters(), tokens]) - held["full"] == 2 * 30 * 32 * 4


@pytest.mark.parametrize(
    ("name", "runs", "projections"), [("none", 1, 0), ("selective", 2, 0), ("full", 2, 7)]
)
def test_full_runs_every_block_again_and_selective_runs_no_projection_again(
    monkeypatch: pytest.MonkeyPatch, name: str, runs: int, projections: int
) -> None:
    calls = 0
    forward = Block.forward

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*arguments)

    monkeypatch.setattr(Block, "forward", counted)
    # Dropout after down_proj, so that the backward pass needs the whole block.
    model, watch = make(name, mlp_dropout=0.1), Watch()
    with watch:
        loss = loss_of(model, ids())
        first = watch.projections
        loss.backward()
    assert calls == runs * LAYERS
    assert first == 7 * LAYERS + 1
    assert watch.projections - 3 * first == projections * LAYERS


@pytest.mark.parametrize("name", ["selective", "full"])
def test_nothing_is_checkpointed_in_evaluation_without_gradients_or_with_a_cache(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("checkpointed")

    model, plain = make(name), make("none")
    expected = plain(ids())
    monkeypatch.setitem(ACTIVATION_CHECKPOINTING, name, refuse)
    with pytest.raises(AssertionError, match="checkpointed"):
        model(ids())
    assert torch.equal(model.eval()(ids()), expected)
    model.train()
    with torch.no_grad():
        assert torch.equal(model(ids()), expected)
    cache = RollingCache(model.config, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(ids(), cache=cache), expected, rtol=0, atol=1e-5)
    assert cache.length == 31


def test_an_unknown_name_raises_an_error_in_the_constructor_and_on_assignment() -> None:
    message = "unknown activation_checkpointing 'some': available are none, selective, full"
    with pytest.raises(ValueError, match=message):
        make("some")
    model = make("none")
    with pytest.raises(ValueError, match=message):
        model.activation_checkpointing = "some"
    assert model.activation_checkpointing == "none"


def test_an_expanded_model_keeps_the_choice() -> None:
    assert expand(make("full"), LAYERS + 1, "top").activation_checkpointing == "full"
