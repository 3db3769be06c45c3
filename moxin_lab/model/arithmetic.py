"""What a decoder costs by its shapes alone: bytes of a training step, bytes and operations of
reading and writing a token.

Guarantees: parameters are those of `count_parameters`, cache bytes those of the real cache classes
on the meta device; the bytes that a block keeps for its backward pass are checked against what
autograd holds (tests/model/test_arithmetic.py). Each function returns a pandas DataFrame. Does not:
count fragmentation, communication buffers, or a framework's own megabytes.
"""

import pandas as pd
import torch

from moxin_lab.model.cache import FullCache, RollingCache
from moxin_lab.model.config import (
    MoxinConfig,
    count_parameters,
    matrix_parameters,
    training_flops_per_token,
)

GIB = 2**30


def block_activation_bytes(config: MoxinConfig, checkpointing: str, *, element: int = 2) -> int:
    """Bytes a token that one block keeps for its backward pass, `element` bytes a number.

    none: inputs of both norms and of both groups of projections, q, k and v, attention's output,
    and four of SwiGLU (gate, up, silu(gate), their product). selective: the block's input and what
    its seven projections return. full: the input alone.
    """
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    numbers = {
        "none": 4 * width + 2 * heads + 2 * kv_heads + 4 * inner,
        "selective": 3 * width + heads + 2 * kv_heads + 2 * inner,
        "full": width,
    }
    if checkpointing not in numbers:
        raise ValueError(
            f"unknown checkpointing {checkpointing!r}: available are {', '.join(numbers)}"
        )
    return numbers[checkpointing] * element


def training_memory(
    config: MoxinConfig, *, batch: int, sequence: int, loss_chunk: int = 4096
) -> pd.DataFrame:
    """Bytes of one training step on one device, by part; AdamW in mixed precision (Rajbhandari et
    al. 2020, arXiv 1910.02054).

    Weights and gradients in 16 bits; AdamW holds a 32-bit copy of the weights and two 32-bit
    moments. Columns: part, bytes, GiB. Activation rows are alternatives; each holds, beside what it
    keeps of every block, one block in full while that block runs backward. Loss rows are
    alternatives too: logits in 16 bits and their float32 copy and gradient, or a chunk of them.
    """
    parameters, tokens = count_parameters(config)["total"], batch * sequence
    whole = block_activation_bytes(config, "none")
    rows = [
        ("weights, 16 bits", 2 * parameters),
        ("gradients, 16 bits", 2 * parameters),
        ("AdamW: 32-bit weights and two moments", 12 * parameters),
    ]
    for name in ("none", "selective", "full"):
        kept = config.num_hidden_layers * block_activation_bytes(config, name)
        again = 0 if name == "none" else whole
        rows.append((f"activations, checkpointing {name}", (kept + again) * tokens))
    for name, held in (
        ("all logits", tokens),
        (f"a chunk of {loss_chunk:,}", min(loss_chunk, tokens)),
    ):
        rows.append((f"loss over {name}", held * config.vocab_size * (2 + 4 + 4)))
    return pd.DataFrame(
        [(part, count, count / GIB) for part, count in rows], columns=["part", "bytes", "GiB"]
    )


def forward_flops(config: MoxinConfig, sequence: int) -> float:
    """Operations of the forward pass a token, averaged over a text of `sequence` tokens."""
    return training_flops_per_token(config, sequence) / 3


def decode_flops(config: MoxinConfig, place: int) -> float:
    """Operations of one new token at `place` (tokens before it): all matrices once, and attention
    over its window.
    """
    matrices = matrix_parameters(config)
    seen = place + 1 if config.sliding_window is None else min(place + 1, config.sliding_window)
    return (
        2 * matrices
        + 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seen
    )


def per_token(config: MoxinConfig, lengths: list[int]) -> pd.DataFrame:
    """Operations a token of training, prefill and decode at several lengths, and what one decoded
    token reads from memory.

    Columns: tokens, training, prefill (means over the text), decode (the token behind it), all in
    GFLOP; attention (its share of prefill); ring and full cache in GiB (16 bits, one text); decode
    reads (weights but the embedding, and the ring), GB.
    """
    without = count_parameters(config)
    matrices = matrix_parameters(config)
    weights = 2 * (without["total"] - without["embed_tokens"])
    rows = []
    for length in lengths:
        forward = forward_flops(config, length)
        ring = RollingCache(config, dtype=torch.float16, device="meta").nbytes
        full = FullCache(config, num_tokens=length, dtype=torch.float16, device="meta").nbytes
        held = min(ring, full)
        rows.append(
            (
                length,
                3 * forward / 1e9,
                forward / 1e9,
                decode_flops(config, length) / 1e9,
                1 - 2 * matrices / forward,
                ring / GIB,
                full / GIB,
                (weights + held) / 1e9,
            )
        )
    columns = [
        "tokens",
        "training, GFLOP",
        "prefill, GFLOP",
        "decode, GFLOP",
        "attention's share",
        "ring, GiB",
        "full cache, GiB",
        "decode reads, GB",
    ]
    return pd.DataFrame(rows, columns=columns)
