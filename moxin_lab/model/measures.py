"""Measurements of the decoder in notebook 03: parity, the edge of the window, the caches, and how
far influence reaches through the blocks.

Guarantees: every number is computed from the model that is passed in; nothing is trained, and only
test tokens and test tensors are random, from a seed. Measurements are pandas DataFrames with one
row per measurement.
Out of scope: verdicts, which are the notebook's.
"""

import copy
import dataclasses
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from moxin_lab.model.attention import attention
from moxin_lab.model.cache import FullCache, KeyValueCache, RollingCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.mask import AttentionMask


def random_tokens(config: MoxinConfig, batch_size: int, length: int, seed: int) -> Tensor:
    """int64 [batch_size, length], uniform over the vocabulary."""
    return torch.randint(
        config.vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(seed)
    )


@torch.no_grad()
def parity_with_transformers(
    model: MoxinForCausalLM, lengths: list[int], seed: int
) -> pd.DataFrame:
    """Largest absolute difference of logits between our decoder and transformers'
    `MistralForCausalLM`, with the same weights and tokens.

    On the model's device. Columns: tokens; backend (ours); largest_difference; rounding (our
    float32 logits against our own float64 logits: differences of this size mean nothing);
    without_window (the difference if our window is removed, which shows what a missing window looks
    like); largest_logit.
    """
    from transformers import MistralConfig, MistralForCausalLM

    with torch.device("meta"):
        peer = MistralForCausalLM(
            MistralConfig(**model.config.to_hf_dict(), attn_implementation="eager")
        )
    # The buffer of the rotary embedding is not in the state dict, so it is built again off the meta
    # device.
    with torch.device(model.lm_head.weight.device):
        peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config)
    peer.load_state_dict(model.state_dict(), strict=True, assign=True)
    peer.eval()
    with torch.device("meta"):
        windowless = MoxinForCausalLM(dataclasses.replace(model.config, sliding_window=None))
    windowless.load_state_dict(model.state_dict(), assign=True)
    windowless.eval()
    exact = copy.deepcopy(model).double()
    original_backend, rows = model.attention_backend, []
    for length in lengths:
        ids = random_tokens(model.config, 1, length, seed).to(model.lm_head.weight.device)
        expected = peer(ids).logits
        without_window = (windowless(ids) - expected).abs().max().item()
        largest_logit = expected.abs().max().item()
        for backend in ("reference", "sdpa"):
            model.attention_backend = backend
            logits = model(ids)
            difference = (logits - expected).abs().max().item()
            rounding = (logits - exact(ids)).abs().max().item()
            rows.append((length, backend, difference, rounding, without_window, largest_logit))
    model.attention_backend = original_backend
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
    """Change of the last query's output if one key and its value are replaced, at distances around
    the window.

    One attention layer with a single head of size 16. Columns: distance (0 is the position of the
    query itself), largest_change.
    """
    length = sliding_window + 3
    generator = torch.Generator().manual_seed(seed)
    query, key, value, other = (
        torch.randn(1, 1, length, 16, generator=generator) for _ in range(4)
    )
    positions = torch.arange(length)
    # Only the last query: its row of the mask, without the T x T scores of all queries.
    mask = AttentionMask(positions[-1:], positions, sliding_window, is_causal=False, sees_all=False)
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
    """Difference between logits with a cache and those of one forward pass without, over a text of
    `length` tokens, in float64.

    In float64, because in float32 the 36 blocks amplify the rounding of sums in a different order
    to the size of the tolerance; on the model's device. The text is read in chunks of one size and
    its last `singles` tokens one by one. Columns: cache, chunk, tokens, turns (how often the ring
    is filled), largest_difference, kilobytes (of float64 keys and values).
    """
    exact = copy.deepcopy(model).double()
    exact.attention_backend = "sdpa"  # of the fast ones the one that computes in float64
    device = next(exact.parameters()).device
    ids = random_tokens(model.config, 1, length, seed).to(device)
    exactly: dict[str, Any] = {"dtype": torch.float64, "device": device}
    expected = exact(ids)
    rows = []
    for chunk in chunks:
        sizes = _chunk_sizes(length - singles, chunk) + [1] * singles
        for cache in (
            RollingCache(model.config, **exactly),
            FullCache(model.config, num_tokens=length, **exactly),
        ):
            logits = _logits_with_cache(exact, ids, sizes, cache)
            difference = logits.sub(expected).abs().max().item()
            name, turns = type(cache).__name__, length / cache.num_slots
            rows.append((name, chunk, length, turns, difference, cache.nbytes / 1000))
    return pd.DataFrame(
        rows, columns=["cache", "chunk", "tokens", "turns", "largest_difference", "kilobytes"]
    )


def _chunk_sizes(length: int, chunk: int) -> list[int]:
    return [min(chunk, length - start) for start in range(0, length, chunk)]


def _logits_with_cache(
    model: MoxinForCausalLM, ids: Tensor, sizes: list[int], cache: KeyValueCache
) -> Tensor:
    return torch.cat([model(part, cache=cache) for part in ids.split(sizes, dim=1)], dim=1)


def cache_bytes(
    config: MoxinConfig, lengths: list[int], dtype: torch.dtype = torch.float16
) -> pd.DataFrame:
    """Bytes of both caches for one text, from the real classes on the meta device.

    Columns: tokens, full (bytes), rolling (bytes), ratio.
    """
    rows = []
    for length in lengths:
        full = FullCache(config, num_tokens=length, dtype=dtype, device="meta").nbytes
        rolling = RollingCache(config, dtype=dtype, device="meta").nbytes
        rows.append((length, full, rolling, full / rolling))
    return pd.DataFrame(rows, columns=["tokens", "full", "rolling", "ratio"])


def influence(model: MoxinForCausalLM, length: int, seed: int) -> pd.DataFrame:
    """Influence of each earlier token on the final state of the last token: the norm of a gradient,
    by distance.

    The gradient is that of the last hidden state in a random direction, with respect to the
    embedding of each token. The model should be in float64: in float32 what arrives through all
    blocks underflows. On the model's device. Columns: distance, influence (norm relative to
    distance 0).
    """
    ids = random_tokens(model.config, 1, length, seed).to(model.lm_head.weight.device)
    states: list[Tensor] = []

    def detach_embeddings(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        states.append(output.detach().requires_grad_())
        return states[0]

    hook = model.model.embed_tokens.register_forward_hook(detach_embeddings)
    try:
        final = model.hidden_states(ids)[0, -1]
    finally:
        hook.remove()
    direction = torch.randn(
        final.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    gradient = torch.autograd.grad(final @ direction.to(final), states[0])[0]
    norms = gradient[0].norm(dim=-1).flip(0)  # [1, T, C] -> [T], by distance to the last token
    return pd.DataFrame({"distance": range(length), "influence": (norms / norms[0]).tolist()})


def span(frame: pd.DataFrame, share: float) -> int:
    """Smallest distance within which earlier tokens have `share` of the influence of all earlier
    tokens (the token itself, at distance 0, is not counted).
    """
    earlier = frame.loc[frame["distance"] > 0, "influence"].cumsum()
    return int((earlier < share * earlier.iloc[-1]).sum()) + 1


def reach(frame: pd.DataFrame) -> int:
    """Largest distance with any influence at all."""
    return int(frame.loc[frame["influence"] > 0, "distance"].max())
