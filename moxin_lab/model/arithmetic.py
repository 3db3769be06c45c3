"""The cost of a decoder computed from its shapes: bytes of a training step, operations and bytes of
prefill and decoding.

Guarantees: parameters are those of `count_parameters`, cache bytes those of the real cache classes
on the meta device; the bytes that a block keeps for its backward pass are checked against what
autograd holds (tests/model/test_arithmetic.py).
Out of scope: memory fragmentation, communication buffers, and the framework's own memory.
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


def block_activation_bytes(
    config: MoxinConfig, checkpointing: str, *, element_bytes: int = 2
) -> int:
    """Bytes per token that one block keeps for its backward pass.

    checkpointing "none": the inputs of both norms and of both groups of projections, q, k and v,
    attention's output, and four tensors of SwiGLU (gate, up, silu(gate), their product).
    "selective": the block's input and the outputs of its seven projections. "full": the input
    alone.
    """
    width, inner = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    num_elements = {
        "none": 4 * width + 2 * q_width + 2 * kv_width + 4 * inner,
        "selective": 3 * width + q_width + 2 * kv_width + 2 * inner,
        "full": width,
    }
    if checkpointing not in num_elements:
        raise ValueError(
            f"unknown checkpointing {checkpointing!r}: available are {', '.join(num_elements)}"
        )
    return num_elements[checkpointing] * element_bytes


def training_memory(
    config: MoxinConfig, *, batch: int, sequence: int, loss_chunk: int = 4096
) -> pd.DataFrame:
    """Memory of one training step on one device, by part, with AdamW in mixed precision
    (Rajbhandari et al. 2020, arXiv 1910.02054).

    Weights and gradients have 16 bits; AdamW holds a 32-bit copy of the weights and two 32-bit
    moments. Columns: part, bytes, GiB. The rows of activations are alternatives; each includes one
    complete block, for the block whose backward pass runs. The rows of the loss are alternatives
    too: 16-bit logits with their float32 copy and gradient, for all tokens or for one chunk.
    """
    parameters, tokens = count_parameters(config)["total"], batch * sequence
    full_block = block_activation_bytes(config, "none")
    rows = [
        ("weights, 16 bits", 2 * parameters),
        ("gradients, 16 bits", 2 * parameters),
        ("AdamW: 32-bit weights and two moments", 12 * parameters),
    ]
    for name in ("none", "selective", "full"):
        kept = config.num_hidden_layers * block_activation_bytes(config, name)
        recomputed = 0 if name == "none" else full_block
        rows.append((f"activations, checkpointing {name}", (kept + recomputed) * tokens))
    for name, num_logits in (
        ("all logits", tokens),
        (f"a chunk of {loss_chunk:,}", min(loss_chunk, tokens)),
    ):
        rows.append((f"loss over {name}", num_logits * config.vocab_size * (2 + 4 + 4)))
    return pd.DataFrame(
        [(part, count, count / GIB) for part, count in rows], columns=["part", "bytes", "GiB"]
    )


def forward_flops(config: MoxinConfig, sequence: int) -> float:
    """FLOPs of the forward pass per token, averaged over a text of `sequence` tokens."""
    return training_flops_per_token(config, sequence) / 3


def decode_flops(config: MoxinConfig, position: int) -> float:
    """FLOPs of one new token at `position` (the number of tokens before it): all matrices once, and
    attention over its window.
    """
    matrices = matrix_parameters(config)
    num_keys = position + 1
    if config.sliding_window is not None:
        num_keys = min(num_keys, config.sliding_window)
    return (
        2 * matrices
        + 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * num_keys
    )


def cost_per_token(config: MoxinConfig, lengths: list[int]) -> pd.DataFrame:
    """FLOPs per token of training, prefill and decoding for texts of several lengths, and the bytes
    that one decoded token reads from memory.

    Columns: tokens; training and prefill (means over the text) and decode (the token after it), in
    GFLOP; attention's share of prefill; ring and full cache of one text with 16-bit numbers, in
    GiB; decode reads (the ring and all weights but the embedding), in GB.
    """
    parameters = count_parameters(config)
    matrices = matrix_parameters(config)
    weight_bytes = 2 * (parameters["total"] - parameters["embed_tokens"])
    rows = []
    for length in lengths:
        forward = forward_flops(config, length)
        ring = RollingCache(config, dtype=torch.float16, device="meta").nbytes
        full = FullCache(config, num_tokens=length, dtype=torch.float16, device="meta").nbytes
        cache_bytes = min(ring, full)
        rows.append(
            (
                length,
                3 * forward / 1e9,
                forward / 1e9,
                decode_flops(config, length) / 1e9,
                1 - 2 * matrices / forward,
                ring / GIB,
                full / GIB,
                (weight_bytes + cache_bytes) / 1e9,
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
