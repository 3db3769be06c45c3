"""What notebook 03 measures about the decoder: parity, the edge of the window, the cache, the reach
through depth.

Guarantees: every number is computed from the model that is handed in; nothing is trained or drawn
here but test tokens from a seed. Each function returns a pandas DataFrame, one row a measurement.
Does not: judge; verdicts are the notebook's.
"""

import copy
import dataclasses

import pandas as pd
import torch
from torch import Tensor

from moxin_lab.model.attention import AttentionMask, attention
from moxin_lab.model.cache import FullCache, KeyValueCache, RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM


def random_tokens(config: MoxinConfig, batch_size: int, length: int, seed: int) -> Tensor:
    """int64 [batch_size, length], uniform over the vocabulary."""
    return torch.randint(
        config.vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(seed)
    )


@torch.no_grad()
def parity_with_transformers(
    model: MoxinForCausalLM, lengths: list[int], seed: int
) -> pd.DataFrame:
    """Largest absolute difference of logits to transformers' `MistralForCausalLM` with the same
    weights and tokens.

    Columns: tokens, backend (ours), largest_difference; rounding (our float32 logits against our
    own in float64: differences of this size mean nothing); without_window (the difference if our
    window is taken away: what a missing window would look like); largest_logit.
    """
    from transformers import MistralConfig, MistralForCausalLM

    with torch.device("meta"):
        peer = MistralForCausalLM(
            MistralConfig(**model.config.to_hf_dict(), attn_implementation="eager")
        )
    with torch.device(model.lm_head.weight.device):
        peer.model.rotary_emb = type(peer.model.rotary_emb)(
            peer.config
        )  # its buffer is no weight, so it is made anew
    peer.load_state_dict(model.state_dict(), strict=True, assign=True)
    peer.eval()
    with torch.device("meta"):
        windowless = MoxinForCausalLM(dataclasses.replace(model.config, sliding_window=None))
    windowless.load_state_dict(model.state_dict(), assign=True)
    windowless.eval()
    exact = copy.deepcopy(model).double()
    chosen, rows = model.attention_backend, []
    for length in lengths:
        ids = random_tokens(model.config, 1, length, seed)
        expected = peer(ids).logits
        unseen = (windowless(ids) - expected).abs().max().item()
        for backend in ("reference", "sdpa"):
            model.attention_backend = backend
            logits = model(ids)
            difference = (logits - expected).abs().max().item()
            rounding = (logits - exact(ids)).abs().max().item()
            rows.append(
                (length, backend, difference, rounding, unseen, expected.abs().max().item())
            )
    model.attention_backend = chosen
    columns = [
        "tokens",
        "backend",
        "largest_difference",
        "rounding",
        "without_window",
        "largest_logit",
    ]
    return pd.DataFrame(rows, columns=columns)


def window_edge(sliding_window: int, seed: int) -> pd.DataFrame:
    """How much the last query's output changes when one key and its value are replaced, at
    distances around the window.

    One attention layer of a single head of 16. Columns: distance (0 is the query's own place),
    largest_change.
    """
    length = sliding_window + 3
    generator = torch.Generator().manual_seed(seed)
    query, key, value, other = (
        torch.randn(1, 1, length, 16, generator=generator) for _ in range(4)
    )
    places = torch.arange(length)
    # The last query alone: the same mask row, without the square of the others.
    mask = AttentionMask(places[-1:], places, sliding_window, is_causal=False, sees_all=False)
    before = attention(query[:, :, -1:], key, value, mask)
    rows = []
    for distance in (
        0,
        1,
        sliding_window - 2,
        sliding_window - 1,
        sliding_window,
        sliding_window + 1,
    ):
        changed_key, changed_value = key.clone(), value.clone()
        changed_key[:, :, -1 - distance] = other[:, :, -1 - distance]
        changed_value[:, :, -1 - distance] = -other[:, :, -1 - distance]
        after = attention(query[:, :, -1:], changed_key, changed_value, mask)
        rows.append((distance, (after - before).abs().max().item()))
    return pd.DataFrame(rows, columns=["distance", "largest_change"])


@torch.no_grad()
def decode_differences(
    model: MoxinForCausalLM, length: int, chunks: list[int], singles: int, seed: int
) -> pd.DataFrame:
    """Logits with a cache against the forward pass without one, over a text of `length` tokens, in
    float64.

    In float64, because in float32 36 blocks amplify the rounding of sums in another order to the
    size of the tolerance. The text goes in by chunks of one size, the last `singles` tokens one by
    one. Columns: cache, chunk, tokens, turns (of the ring), largest_difference, kilobytes (of
    float64 keys and values).
    """
    exact = copy.deepcopy(model).double()
    ids = random_tokens(model.config, 1, length, seed)
    expected = exact(ids)
    rows = []
    for chunk in chunks:
        sizes = _sizes(length - singles, chunk) + [1] * singles
        for cache in (
            RollingCache(model.config, dtype=torch.float64),
            FullCache(model.config, num_tokens=length, dtype=torch.float64),
        ):
            difference = _cached(exact, ids, sizes, cache).sub(expected).abs().max().item()
            name, turns = type(cache).__name__, length / cache.num_slots
            rows.append((name, chunk, length, turns, difference, cache.nbytes / 1000))
    return pd.DataFrame(
        rows, columns=["cache", "chunk", "tokens", "turns", "largest_difference", "kilobytes"]
    )


def _sizes(length: int, chunk: int) -> list[int]:
    return [min(chunk, length - start) for start in range(0, length, chunk)]


def _cached(model: MoxinForCausalLM, ids: Tensor, sizes: list[int], cache: KeyValueCache) -> Tensor:
    return torch.cat([model(part, cache=cache) for part in ids.split(sizes, dim=1)], dim=1)


def cache_bytes(
    config: MoxinConfig, lengths: list[int], dtype: torch.dtype = torch.float16
) -> pd.DataFrame:
    """Bytes that both caches hold for one text, from the real classes on the meta device.

    Columns: tokens, full, rolling (bytes), ratio.
    """
    rows = []
    for length in lengths:
        full = FullCache(config, num_tokens=length, dtype=dtype, device="meta").nbytes
        rolling = RollingCache(config, dtype=dtype, device="meta").nbytes
        rows.append((length, full, rolling, full / rolling))
    return pd.DataFrame(rows, columns=["tokens", "full", "rolling", "ratio"])


def influence(model: MoxinForCausalLM, length: int, seed: int) -> pd.DataFrame:
    """How strongly each earlier token moves the last one's final state: the gradient's norm by
    distance, in float64.

    The gradient is that of a random direction of the last hidden state with respect to each token's
    embedding. float64, because what arrives through all blocks underflows in float32. Columns:
    distance, influence (norm, relative to distance 0).
    """
    ids = random_tokens(model.config, 1, length, seed)
    states: list[Tensor] = []

    def catch(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        states.append(output.detach().requires_grad_())
        return states[0]

    hook = model.model.embed_tokens.register_forward_hook(catch)
    try:
        final = model.hidden_states(ids)[0, -1]
    finally:
        hook.remove()
    direction = torch.randn(
        final.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    gradient = torch.autograd.grad(final @ direction.to(final.dtype), states[0])[0]
    norms = gradient[0].norm(dim=-1).flip(0)
    return pd.DataFrame({"distance": range(length), "influence": (norms / norms[0]).tolist()})


def span(frame: pd.DataFrame, share: float) -> int:
    """Smallest number of tokens back that holds `share` of the influence of all earlier tokens
    (distance 0 left out).
    """
    earlier = frame.loc[frame["distance"] > 0, "influence"].cumsum()
    return int((earlier < share * earlier.iloc[-1]).sum()) + 1


def reach(frame: pd.DataFrame) -> int:
    """Largest distance with any influence at all."""
    return int(frame.loc[frame["influence"] > 0, "distance"].max())
