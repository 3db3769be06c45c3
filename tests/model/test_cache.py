"""The rolling cache: decoding with it equals the forward pass without, with 1/8 of the bytes."""

import pytest
import torch
from torch import Tensor

from moxin_lab.model.cache import FullCache, KeyValueCache, RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM

WINDOW = 8
CONFIG = MoxinConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=WINDOW,
    max_position_embeddings=128,
    initializer_range=0.2,
)
LENGTHS = [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 5 * WINDOW + 3]


@pytest.fixture(scope="module")
def model() -> MoxinForCausalLM:
    return MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(5)).double().eval()


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def in_chunks(
    model: MoxinForCausalLM, ids: Tensor, sizes: int | list[int], cache: KeyValueCache
) -> Tensor:
    return torch.cat([model(chunk, cache=cache) for chunk in ids.split(sizes, dim=1)], dim=1)


@pytest.mark.parametrize("length", LENGTHS)
def test_token_by_token_the_ring_equals_the_full_cache_and_the_uncached_forward(
    model: MoxinForCausalLM, length: int
) -> None:
    ids = tokens(length)
    ring = in_chunks(model, ids, 1, RollingCache(CONFIG, 2, dtype=torch.float64))
    full = in_chunks(model, ids, 1, FullCache(CONFIG, 2, num_tokens=length, dtype=torch.float64))
    with torch.no_grad():
        uncached = model(ids)
    torch.testing.assert_close(ring, uncached, rtol=0, atol=1e-12)
    torch.testing.assert_close(full, uncached, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cache_class", [RollingCache, FullCache])
@pytest.mark.parametrize("size", [1, 7, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 43])
def test_any_chunking_gives_the_same_logits(
    model: MoxinForCausalLM, size: int, cache_class: type[KeyValueCache]
) -> None:
    ids = tokens(43)
    with torch.no_grad():
        uncached = model(ids)
    cache = cache_class(CONFIG, 2, dtype=torch.float64)
    torch.testing.assert_close(in_chunks(model, ids, size, cache), uncached, rtol=0, atol=1e-12)


def test_chunks_of_any_size_give_the_same_logits_while_the_ring_wraps_around(
    model: MoxinForCausalLM,
) -> None:
    ids = tokens(120)
    sizes = [5, 1, 1, 9, 1, 17, 2, 8, 1, 1, 26, 3, 45]
    with torch.no_grad():
        uncached = model(ids)
    cache = RollingCache(CONFIG, 2, dtype=torch.float64)
    torch.testing.assert_close(in_chunks(model, ids, sizes, cache), uncached, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 11])
def test_slot_s_holds_the_latest_position_equal_to_s_modulo_the_window(
    model: MoxinForCausalLM, size: int
) -> None:
    ids = tokens(43)
    ring = RollingCache(CONFIG, 2, dtype=torch.float64)
    full = FullCache(CONFIG, 2, dtype=torch.float64)
    for chunk in ids.split(size, dim=1):
        in_chunks(model, chunk, chunk.shape[1], ring)
        in_chunks(model, chunk, chunk.shape[1], full)
        for position in range(max(0, ring.length - WINDOW), ring.length):
            torch.testing.assert_close(
                ring.keys[:, :, :, position % WINDOW],
                full.keys[:, :, :, position],
                rtol=0,
                atol=1e-12,
            )
            torch.testing.assert_close(
                ring.values[:, :, :, position % WINDOW],
                full.values[:, :, :, position],
                rtol=0,
                atol=1e-12,
            )


@pytest.mark.parametrize("seen", [3, WINDOW - 1, WINDOW, 2 * WINDOW + 5])
@pytest.mark.parametrize("new", [1, 4, 2 * WINDOW])
def test_slots_outside_every_window_may_hold_nan(
    model: MoxinForCausalLM, seen: int, new: int
) -> None:
    ids = tokens(seen + new)
    clean, poisoned = (RollingCache(CONFIG, 2, dtype=torch.float64) for _ in range(2))
    for cache in (clean, poisoned):
        in_chunks(model, ids[:, :seen], seen, cache)
    unused = [slot for slot in range(WINDOW) if slot >= seen] if seen < WINDOW else [seen % WINDOW]
    poisoned.keys[:, :, :, unused] = float("nan")
    poisoned.values[:, :, :, unused] = float("nan")
    expected = in_chunks(model, ids[:, seen:], new, clean)
    assert torch.equal(in_chunks(model, ids[:, seen:], new, poisoned), expected)


def test_one_token_writes_one_slot(model: MoxinForCausalLM) -> None:
    cache = RollingCache(CONFIG, 1, dtype=torch.float64)
    ids = tokens(21, batch=1)
    in_chunks(model, ids[:, :20], 20, cache)
    before, address = cache.keys.clone(), cache.keys.data_ptr()
    in_chunks(model, ids[:, 20:], 1, cache)
    changed = (cache.keys != before).any(dim=-1).any(dim=0).any(dim=0).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [20 % WINDOW]
    assert cache.keys.data_ptr() == address


@pytest.mark.parametrize("cache_class", [RollingCache, FullCache])
@pytest.mark.parametrize("size", [1, 5, 30])
def test_a_padded_row_equals_the_row_alone(
    model: MoxinForCausalLM, size: int, cache_class: type[KeyValueCache]
) -> None:
    """Also after the ring has overwritten the padding."""
    short, long = tokens(21, batch=1), tokens(30, batch=1)
    padded = torch.cat((torch.cat((torch.zeros(1, 9, dtype=torch.long), short), dim=1), long))
    cache = cache_class(CONFIG, 2, padding=torch.tensor([9, 0]), dtype=torch.float64)
    logits = in_chunks(model, padded, size, cache)
    with torch.no_grad():
        torch.testing.assert_close(logits[:1, 9:], model(short), rtol=0, atol=1e-12)
        torch.testing.assert_close(logits[1:], model(long), rtol=0, atol=1e-12)
    assert logits.isfinite().all()


def test_without_a_window_the_ring_is_a_full_cache() -> None:
    config = MoxinConfig(
        **{**CONFIG.__dict__, "sliding_window": None, "max_position_embeddings": 50}
    )
    model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(5)).double().eval()
    ids = tokens(43)
    with torch.no_grad():
        uncached = model(ids)
    torch.testing.assert_close(
        in_chunks(model, ids, 6, RollingCache(config, 2, dtype=torch.float64)),
        uncached,
        rtol=0,
        atol=1e-12,
    )


def test_at_32768_tokens_the_ring_holds_exactly_an_eighth_of_the_bytes() -> None:
    options = {"dtype": torch.float16, "device": "meta"}
    full = FullCache(MoxinConfig(), 1, num_tokens=32_768, **options)
    ring = RollingCache(MoxinConfig(), 1, **options)
    # keys and values, layers, heads, head_dim, bytes per number, tokens
    assert full.nbytes == 2 * 36 * 8 * 128 * 2 * 32_768
    assert full.nbytes / ring.nbytes == 8.0


def test_too_many_tokens_and_wrong_padding_are_refused(model: MoxinForCausalLM) -> None:
    cache = FullCache(CONFIG, 2, num_tokens=10, dtype=torch.float64)
    with pytest.raises(ValueError, match="11 tokens do not fit into a cache of 10"):
        model(tokens(11), cache=cache)
    ring = RollingCache(CONFIG, 2, dtype=torch.float64)
    in_chunks(model, tokens(128), 128, ring)
    with pytest.raises(ValueError, match="129 tokens are more than max_position_embeddings 128"):
        model(tokens(1), cache=ring)
    with pytest.raises(ValueError, match=r"padding has shape \(3,\), not \[2\]"):
        RollingCache(CONFIG, 2, padding=torch.tensor([1, 0, 0]))
    with pytest.raises(ValueError, match="document_ids cannot be combined with a cache"):
        model(
            tokens(4),
            document_ids=torch.zeros(2, 4, dtype=torch.long),
            cache=RollingCache(CONFIG, 2),
        )
    with pytest.raises(ValueError, match="the cache has 2 rows and input_ids has 1"):
        model(tokens(4, batch=1), cache=RollingCache(CONFIG, 2, dtype=torch.float64))
