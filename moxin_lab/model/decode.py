"""One token at a time as fast as memory allows: the decoder's step on the decoding kernels,
captured in a CUDA graph.

    step = DecodeStep(model, cache)          # after the prompt has gone through `model(prompt, cache=cache)`
    logits = step(token)                     # int64 [B] -> [B, V]; the cache holds one token more

Guarantees: the logits of `model(token[:, None], cache=cache)` up to rounding, and the same ring,
whatever its turn and padding (tests/model/test_decode.py; on the CPU through Triton's interpreter);
on a GPU a replayed graph equals the eager step to the bit; the position is read on the device, so
one graph serves every position. The logits' memory is reused by the next step.
Does not: run without Triton, with head sizes other than 32 to 256 in powers of two, or on a
`FullCache`; `generate` then calls the model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moxin_lab.model.cache import RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM


def refusal(model: MoxinForCausalLM, device: torch.device) -> str | None:
    """Why `DecodeStep` cannot run this model on that device; None where it can."""
    try:
        from moxin_lab.kernels import window_attention
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    config = model.config
    if config.num_attention_heads // config.num_key_value_heads > 16:
        return "more than 16 query heads share a key/value head"
    if config.head_dim < 32:
        return f"head_dim is {config.head_dim}: halves of a head are multiplied, and tensor cores take no fewer than 16 numbers"
    return window_attention.refusal(
        torch.empty(1, 1, 1, config.head_dim, dtype=model.lm_head.weight.dtype, device=device)
    )


class DecodeStep:
    """The step for one model and one rolling cache; see the module's text.

    graph: capture in a CUDA graph on first use (default on a GPU). Raises ValueError where the
    kernels cannot run.
    """

    def __init__(
        self, model: MoxinForCausalLM, cache: RollingCache, *, graph: bool | None = None
    ) -> None:
        from moxin_lab.kernels.decode import RingWorkspace

        reason = refusal(model, cache.keys.device)
        if reason is not None:
            raise ValueError(f"the decoding kernels cannot run: {reason}")
        self._model, self._cache = model, cache
        _, batch, kv_heads, num_slots, head_dim = cache.keys.shape
        device = cache.keys.device
        self._workspace = RingWorkspace(batch, kv_heads, head_dim, num_slots, device)
        self._token = torch.zeros(batch, dtype=torch.int64, device=device)
        self._length = torch.zeros(1, dtype=torch.int32, device=device)
        self._padding = None if cache.padding is None else cache.padding.int()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        self._frequencies = 1.0 / model.config.rope_theta**exponents
        self._use_graph = device.type == "cuda" if graph is None else graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, token: Tensor) -> Tensor:
        """Logits [B, V] of what follows `token`, int64 [B]. Raises ValueError when the positions
        are used up.
        """
        limit = self._model.config.max_position_embeddings
        if self._cache.length >= limit:
            raise ValueError(
                f"{self._cache.length + 1} tokens are more than max_position_embeddings {limit}: shorten the text"
            )
        self._token.copy_(token)
        self._length.fill_(self._cache.length)
        if not self._use_graph:
            logits = self._run()
        else:
            if self._graph is None:
                self._capture()
            assert self._graph is not None and self._logits is not None
            self._graph.replay()
            logits = self._logits
        self._cache.commit(1)
        return logits

    def _capture(self) -> None:
        # Compile the kernels first, outside the graph. Running twice on one token writes the same
        # slot twice.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()

    def _run(self) -> Tensor:
        from moxin_lab.kernels.decode import MAX_ROWS, few_rows_linear, ring_attention

        model, cache, config = self._model.model, self._cache, self._model.config
        position = (
            self._length if self._padding is None else (self._length - self._padding).clamp(min=0)
        )
        angles = (position.float()[:, None] * self._frequencies).expand(len(self._token), -1)
        cos, sin = angles.cos().contiguous(), angles.sin().contiguous()
        hidden = model.embed_tokens(self._token)
        few = len(hidden) <= MAX_ROWS
        for layer, block in enumerate(model.layers):
            attention, mlp = block.self_attn, block.mlp
            projections = [
                attention.q_proj.weight,
                attention.k_proj.weight,
                attention.v_proj.weight,
            ]
            norm, eps = block.input_layernorm, config.rms_norm_eps
            if few:
                qkv = few_rows_linear(hidden, projections, norm=norm.weight, eps=eps)
            else:
                normed = norm(hidden)
                qkv = torch.cat([F.linear(normed, weight) for weight in projections], dim=1)
            attended = ring_attention(
                qkv,
                cache.keys[layer],
                cache.values[layer],
                cos,
                sin,
                self._length,
                self._padding,
                self._workspace,
                config.num_attention_heads,
            )
            norm = block.post_attention_layernorm
            if few:
                hidden = few_rows_linear(attended, [attention.o_proj.weight], residual=hidden)
                inner = few_rows_linear(
                    hidden,
                    [mlp.gate_proj.weight, mlp.up_proj.weight],
                    norm=norm.weight,
                    eps=eps,
                    gated=True,
                )
                hidden = few_rows_linear(inner, [mlp.down_proj.weight], residual=hidden)
            else:
                hidden = hidden + attention.o_proj(attended)
                hidden = hidden + mlp(norm(hidden))
        if few:
            return few_rows_linear(
                hidden,
                [self._model.lm_head.weight],
                norm=model.norm.weight,
                eps=config.rms_norm_eps,
            )
        return self._model.lm_head(model.norm(hidden))
