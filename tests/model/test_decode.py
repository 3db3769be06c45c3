"""The decoding step on kernels gives the logits and the ring of the model's own forward pass,
however often the ring has wrapped around.
"""

import pytest
import torch
from torch import Tensor

from moxin_lab.model.cache import FullCache, RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decode import DecodeStep
from moxin_lab.model.decoder import MoxinForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 24


def tiny(**changes: object) -> MoxinForCausalLM:
    values = {
        "vocab_size": 61,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "sliding_window": WINDOW,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
    }
    model = MoxinForCausalLM(
        MoxinConfig(**{**values, **changes}), generator=torch.Generator().manual_seed(3)
    )
    return model.eval().to(DEVICE)


def prompt(batch: int, length: int) -> Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(length)).to(
        DEVICE
    )


@torch.inference_mode()
def both(
    model: MoxinForCausalLM,
    batch: int,
    seen: int,
    new: int,
    padding: Tensor | None = None,
    **options: object,
):
    """Logits of `new` single tokens after `seen`, by the step and by the model, and the caches of
    the model and of the step.
    """
    ids = prompt(batch, seen + new)
    caches = [RollingCache(model.config, batch, padding=padding, device=DEVICE) for _ in range(2)]
    for cache in caches:
        model(ids[:, :seen], cache=cache)
    step = DecodeStep(model, caches[1], **options)
    expected = [
        model(ids[:, position : position + 1], cache=caches[0])[:, -1]
        for position in range(seen, seen + new)
    ]
    ours = [step(ids[:, position]).clone() for position in range(seen, seen + new)]
    return torch.stack(ours), torch.stack(expected), caches


@pytest.mark.parametrize("seen", [1, WINDOW - 2, WINDOW, 5 * WINDOW + 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_step_equals_the_model_token_by_token(batch: int, seen: int) -> None:
    ours, expected, caches = both(tiny(), batch, seen, 4)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(caches[1].keys, caches[0].keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(caches[1].values, caches[0].values, rtol=1e-4, atol=1e-5)
    assert caches[1].length == caches[0].length == seen + 4


@pytest.mark.parametrize(
    "shape", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"sliding_window": None}]
)
def test_step_equals_the_model_without_grouping_with_one_shared_head_and_without_a_window(
    shape: dict,
) -> None:
    ours, expected, _ = both(tiny(**shape), 2, 30, 3)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seen", [WINDOW - 3, 2 * WINDOW + 5])
def test_padded_rows_get_what_the_model_gives_them(seen: int) -> None:
    padding = torch.tensor([0, 7, WINDOW - 4], device=DEVICE)
    ours, expected, _ = both(tiny(), 3, seen, 3, padding)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_slots_outside_every_window_may_hold_nan() -> None:
    model = tiny()
    for seen in (5, 2 * WINDOW + 5):
        ids = prompt(1, seen + 1)
        results = []
        for poison in (False, True):
            cache = RollingCache(model.config, 1, device=DEVICE)
            model(ids[:, :seen], cache=cache)
            if poison:
                unused = list(range(seen, WINDOW)) if seen < WINDOW else [seen % WINDOW]
                cache.keys[:, :, :, unused] = float("nan")
                cache.values[:, :, :, unused] = float("nan")
            results.append(DecodeStep(model, cache)(ids[:, seen]).clone())
        assert torch.equal(*results)


def test_more_than_sixteen_rows_use_matrix_products() -> None:
    ours, expected, _ = both(tiny(), 18, 30, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU; runs on the GPU machine")
@pytest.mark.parametrize("batch", [1, 3, 18])
def test_a_replayed_graph_equals_the_eager_step_to_the_bit(batch: int) -> None:
    model = tiny().bfloat16()
    rows = []
    for graph in (True, False):
        cache = RollingCache(model.config, batch, dtype=torch.bfloat16, device=DEVICE)
        with torch.inference_mode():
            model(prompt(batch, 20), cache=cache)
        step = DecodeStep(model, cache, graph=graph)
        rows.append(
            torch.stack(
                [step(prompt(batch, 60)[:, position]).clone() for position in range(20, 60)]
            )
        )
    assert torch.equal(*rows)


def test_what_cannot_run_raises_an_error_with_the_reason() -> None:
    model = tiny(max_position_embeddings=WINDOW, vocab_size=61)
    cache = RollingCache(model.config, 1, device=DEVICE)
    with torch.inference_mode():
        model(prompt(1, WINDOW), cache=cache)
    with pytest.raises(ValueError, match="25 tokens are more than max_position_embeddings 24"):
        DecodeStep(model, cache)(prompt(1, 1)[:, 0])
    narrow = tiny(head_dim=16)
    with pytest.raises(ValueError, match="decoding kernels cannot run: head_dim is 16"):
        DecodeStep(narrow, RollingCache(narrow.config, 1, device=DEVICE))
    assert not isinstance(FullCache(model.config, 1, num_tokens=4), RollingCache)
