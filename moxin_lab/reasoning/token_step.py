"""One token for every row of a rollout: the decoder's step on the ring, sampling, and the record of
the token and its log-probability, without leaving the device.

    token [B] -> embedding -> blocks (fused projections, ring) -> logits -> draw(uniform)
              -> token [B], log-probability [B]

On a GPU this is one CUDA graph per batch, replayed without reading the result; on the CPU the same
code runs eagerly.

Guarantees: a row's token depends on its own logits and its own random number only; attention by the
ring kernel and by PyTorch agree (tests/reasoning/test_rollout.py).
Out of scope: prompts, groups, which rows to keep (ring_engine.py).
"""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moxin_lab.model.cache import RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM, rotary_angles, rotate


def draw(
    logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: float
) -> tuple[Tensor, Tensor]:
    """One token per row, int64 [B], and its log-probability at the temperature, float32 [B], from
    logits [B, V] and uniform [B].

    Inverse transform sampling: the first token whose cumulative probability exceeds `uniform`, so a
    row's draws do not depend on other rows. uniform must lie in [0, 1 - 2^-22], so that no rounding
    leads past the last token.
    """
    scaled = logits.float() / temperature
    # In place: the division made a new tensor, and it is the largest one here.
    scaled = scaled.sub_(scaled.amax(dim=-1, keepdim=True))  # [B, V]
    weights = scaled.exp()
    total = weights.sum(dim=-1)
    if top_p < 1:
        ordered, ids = weights.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        weights = weights.scatter(
            -1, ids, ordered.masked_fill(before >= top_p * total[:, None], 0.0)
        )
    token = _first_above(weights, uniform)
    log_probs = scaled.gather(-1, token[:, None])[:, 0] - total.log()
    return token, log_probs


def _first_above(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index of the first of weights [B, V] at which their cumulative sum exceeds uniform [B] times
    their total, int64 [B].

    First among blocks of 128 and then within one: a cumulative sum over the vocabulary is slow on
    the CPU and on a GPU alike.
    """
    rows, width = weights.shape
    padded = F.pad(weights, (0, -width % 128)) if width % 128 else weights
    blocks = padded.view(rows, -1, 128)  # [B, V] -> [B, V / 128, 128]
    cumulative = blocks.sum(dim=-1).cumsum(dim=-1)  # [B, V / 128]
    threshold = uniform[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, threshold, right=True)  # [B, 1]
    before = F.pad(cumulative, (1, 0)).gather(-1, block)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, 128))[:, 0].cumsum(
        dim=-1
    )  # [B, 128]
    # The two sums of a block differ by rounding; a threshold beyond the smaller one belongs to the
    # last token of the block.
    offset = torch.searchsorted(
        within, torch.minimum(threshold - before, within[:, -1:] * (1 - 2**-22)), right=True
    )
    return (block * 128 + offset)[:, 0]


Attend = Callable[[int, Tensor, int, int], Tensor]
"""(layer, fused queries, keys and values [B, (H + 2 Hkv) D], H, Hkv) to attention's output
[B, H D].
"""


@dataclass(eq=False)
class Batch:
    """Rows that are decoded together, in buffers with fixed addresses, so that a graph can be
    replayed on them.
    """

    token: Tensor  # int64 [B], the last one drawn
    ended: Tensor  # bool [B]
    padding: Tensor  # int32 [B], left padding of the prompt
    uniform: Tensor  # float32 [T, B]
    tokens: Tensor  # int64 [T, B], what was drawn
    log_probs: Tensor  # float32 [T, B]
    num_drawn: Tensor  # int64 [1], tokens drawn so far
    length: Tensor  # int32 [1], tokens in the ring
    temperature: Tensor  # float32 []
    cache: RollingCache  # the first B rows of the engine's ring
    top_p: float
    workspace: Any = None
    graph: "torch.cuda.CUDAGraph | None" = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        return len(self.token)


class TokenStep:
    """The step for one model, whose projections it fuses; see the module's docstring."""

    def __init__(
        self,
        model: MoxinForCausalLM,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        kernels: bool,
        graph: bool,
    ) -> None:
        self._model, self._device = model, model.lm_head.weight.device
        self._fused = [_fuse(block) for block in model.model.layers]
        self._eos_token_ids = torch.tensor(list(eos_token_ids), device=self._device)  # [E]
        self._pad_token_id = pad_token_id
        self._kernels, self.graph = kernels, graph
        dim, theta = model.config.head_dim, model.config.rope_theta
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=self._device) / dim
        self._frequencies = 1.0 / theta**exponents
        self._stream: Any = None  # where graphs are captured

    def batch(self, ring: RollingCache, rows: int, budget: int, top_p: float) -> Batch:
        """Buffers for the first `rows` of a ring and `budget` tokens each."""
        cache, device = copy.copy(ring), self._device
        cache.keys, cache.values = ring.keys[:, :rows], ring.values[:, :rows]
        workspace = None
        if self._kernels:
            from moxin_lab.kernels.ring_attention import RingWorkspace

            _, _, kv_heads, num_slots, head_dim = cache.keys.shape
            workspace = RingWorkspace(rows, kv_heads, head_dim, num_slots, device)
        return Batch(
            token=torch.zeros(rows, dtype=torch.int64, device=device),
            ended=torch.zeros(rows, dtype=torch.bool, device=device),
            padding=torch.zeros(rows, dtype=torch.int32, device=device),
            uniform=torch.zeros(budget, rows, device=device),
            tokens=torch.zeros(budget, rows, dtype=torch.int64, device=device),
            log_probs=torch.zeros(budget, rows, device=device),
            num_drawn=torch.zeros(1, dtype=torch.int64, device=device),
            length=torch.zeros(1, dtype=torch.int32, device=device),
            temperature=torch.ones((), device=device),
            cache=cache,
            top_p=top_p,
            workspace=workspace,
        )

    def advance(self, batch: Batch) -> None:
        """One more token for every row; with a graph, only its replay."""
        if not self.graph:
            self._token(batch)
        else:
            if batch.graph is None:
                self._capture(batch)
            assert batch.graph is not None
            batch.graph.replay()
        batch.cache.commit(1)

    def _token(self, batch: Batch) -> None:
        logits = self._logits(batch)
        batch.length += 1
        self.record(batch, logits)

    def record(self, batch: Batch, logits: Tensor) -> None:
        """Draw one token per row from logits [B, V] and record it."""
        uniform = batch.uniform.index_select(0, batch.num_drawn)[0]
        token, log_probs = draw(logits, uniform, batch.temperature, batch.top_p)
        # Not `torch.where`: a number there becomes a tensor on the CPU, whose copy to the GPU no
        # capture allows.
        token = token.masked_fill(batch.ended, self._pad_token_id)
        batch.tokens.index_copy_(0, batch.num_drawn, token[None])
        batch.log_probs.index_copy_(0, batch.num_drawn, log_probs[None])
        batch.ended |= (token[:, None] == self._eos_token_ids).any(dim=1)  # [B, E] -> [B]
        batch.token.copy_(token)
        batch.num_drawn += 1

    def _capture(self, batch: Batch) -> None:
        """Run once outside the graph first, to compile, and restore what that run changed (the
        ring's slot will be written again with the same values).
        """
        state = {
            name: getattr(batch, name).clone() for name in ("token", "ended", "num_drawn", "length")
        }
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._token(batch)
        current.wait_stream(self._stream)
        for name, value in state.items():
            getattr(batch, name).copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Each graph has memory of its own: a pool whose last graph has been freed cannot be
        # captured into again. Another thread may train meanwhile, whose allocations are none of
        # this capture's business. Nothing may free an older graph within it.
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._token(batch)
        finally:
            if collects:
                gc.enable()
        batch.graph = graph

    def _logits(self, batch: Batch) -> Tensor:
        """The decoder for one token per row, logits [B, V], with fused projections; writes the
        token's keys and values into the ring.
        """
        decoder, config = self._model.model, self._model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        attend = self._kernel_attention(batch) if self._kernels else self._plain_attention(batch)
        hidden = decoder.embed_tokens(batch.token)  # [B] -> [B, C]
        for layer, (block, (qkv_weight, gate_up)) in enumerate(
            zip(decoder.layers, self._fused, strict=True)
        ):
            qkv = F.linear(block.input_layernorm(hidden), qkv_weight)  # [B, (H + 2 Hkv) D]
            attended = attend(layer, qkv, heads, kv_heads)  # [B, H D]
            hidden = torch.addmm(hidden, attended, block.self_attn.o_proj.weight.T)
            gate, up = F.linear(block.post_attention_layernorm(hidden), gate_up).chunk(2, dim=1)
            hidden = torch.addmm(hidden, F.silu(gate).mul_(up), block.mlp.down_proj.weight.T)
        return self._model.lm_head(decoder.norm(hidden))  # [B, V]

    def _kernel_attention(self, batch: Batch) -> Attend:
        from moxin_lab.kernels.ring_attention import ring_attention

        cache = batch.cache
        position = (batch.length - batch.padding).clamp(min=0)
        angles = position.float()[:, None] * self._frequencies  # [B, D / 2]
        cos, sin = angles.cos(), angles.sin()

        def attend(layer: int, qkv: Tensor, heads: int, kv_heads: int) -> Tensor:
            return ring_attention(
                qkv,
                cache.keys[layer],
                cache.values[layer],
                cos,
                sin,
                batch.length,
                batch.padding,
                batch.workspace,
                heads,
            )

        return attend

    def _plain_attention(self, batch: Batch) -> Attend:
        config, cache = self._model.config, batch.cache
        length, slots, dim = cache.length, cache.num_slots, config.head_dim
        slot, held = length % slots, min(length + 1, slots)
        cos, sin = rotary_angles((length - batch.padding)[:, None], config)  # [B, 1, 1, D]
        cos, sin = cos[:, 0], sin[:, 0]
        slots_held = torch.arange(held, device=self._device)
        positions = length - (length - slots_held) % slots  # of the token in each slot
        seen = None
        if bool((batch.padding > max(0, length + 1 - slots)).any()):
            seen = (positions >= batch.padding[:, None])[:, None, None]  # [B, 1, 1, held]

        def attend(layer: int, qkv: Tensor, heads: int, kv_heads: int) -> Tensor:
            rows = len(qkv)
            # Queries and keys: [B, (H + Hkv) D] -> [B, H + Hkv, D]
            rotated = rotate(qkv[:, : (heads + kv_heads) * dim].view(rows, -1, dim), cos, sin)
            keys, values = cache.keys[layer], cache.values[layer]
            keys[:, :, slot] = rotated[:, heads:]
            values[:, :, slot] = qkv[:, (heads + kv_heads) * dim :].view(rows, kv_heads, dim)
            # Queries that share a key/value head become its rows, so keys are not repeated:
            # [B, H, D] -> [B, Hkv, H / Hkv, D]
            query = rotated[:, :heads].reshape(rows, kv_heads, heads // kv_heads, dim)
            output = F.scaled_dot_product_attention(
                query, keys[:, :, :held], values[:, :, :held], attn_mask=seen
            )
            return output.reshape(rows, heads * dim)

        return attend


def _fuse(block: nn.Module) -> tuple[Tensor, Tensor]:
    """The block's query, key and value weights as one matrix, and gate and up as one; its
    parameters become views of these.
    """
    fused = []
    for owner, names in (
        (block.self_attn, ("q_proj", "k_proj", "v_proj")),
        (block.mlp, ("gate_proj", "up_proj")),
    ):
        modules = [getattr(owner, name) for name in names]
        weight = torch.cat([module.weight.data for module in modules])
        for module, part in zip(
            modules, weight.split([len(module.weight) for module in modules]), strict=True
        ):
            module.weight = nn.Parameter(part, requires_grad=False)
        fused.append(weight)
    return fused[0], fused[1]
