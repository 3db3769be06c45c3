"""One decoding step on our Triton kernels, captured in a CUDA graph.

    model(prompt, cache=cache)
    step = DecodeStep(model, cache)
    logits = step(token)              # int64 [B] -> [B, V]; the cache then holds one token more

Guarantees: the logits equal those of `model(token[:, None], cache=cache)` up to rounding, and so
does the ring, however often it has wrapped around and whatever its padding
(tests/model/test_decode.py; on the CPU in Triton's interpreter). On a GPU a replayed graph equals
the eager step bit for bit. The position is read on the device, so one graph serves every position.
The memory of the logits is reused by the next step.
Out of scope: running without Triton, head sizes other than 32, 64, 128 and 256, and `FullCache`;
`generate` calls the model in these cases.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moxin_lab.model.cache import RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM


def unsupported_reason(model: MoxinForCausalLM, device: torch.device) -> str | None:
    """Why `DecodeStep` cannot run this model on that device; None if it can."""
    try:
        from moxin_lab.kernels import window_attention
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    config = model.config
    if config.num_attention_heads // config.num_key_value_heads > 16:
        return "more than 16 query heads share a key/value head"
    if config.head_dim < 32:
        return (
            f"head_dim is {config.head_dim}: the kernels multiply halves of a head, and tensor "
            "cores multiply no fewer than 16 numbers"
        )
    return window_attention.unsupported_reason(
        torch.empty(1, 1, 1, config.head_dim, dtype=model.lm_head.weight.dtype, device=device)
    )


class DecodeStep:
    """The decoding step of one model over one rolling cache (see the module's docstring).

    graph: capture a CUDA graph on first use (default on a GPU). Raises ValueError if the kernels
    cannot run.
    """

    def __init__(
        self, model: MoxinForCausalLM, cache: RollingCache, *, graph: bool | None = None
    ) -> None:
        from moxin_lab.kernels.ring_attention import RingWorkspace

        reason = unsupported_reason(model, cache.keys.device)
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
        """Logits [B, V] of the token after `token`, int64 [B]. Raises ValueError beyond the last
        position of the model.
        """
        limit = self._model.config.max_position_embeddings
        longest = self._cache.length - self._cache.oldest
        if longest >= limit:
            raise ValueError(
                f"{longest + 1} tokens are more than max_position_embeddings {limit}: "
                "shorten the text"
            )
        self._token.copy_(token)
        self._length.fill_(self._cache.length)
        if self._padding is not None:  # a row may have begun anew since the last step
            self._padding.copy_(self._cache.padding)
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
        # The kernels must be compiled before the capture, so the step runs once on a side stream.
        # Running it twice on one token is harmless: it writes the same slot twice.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()

    def _run(self) -> Tensor:
        from moxin_lab.kernels.few_rows_linear import MAX_ROWS, few_rows_linear
        from moxin_lab.kernels.ring_attention import ring_attention

        model, cache, config = self._model.model, self._cache, self._model.config
        position = (
            self._length if self._padding is None else (self._length - self._padding).clamp(min=0)
        )
        # [1 or B, 1] x [D/2] -> [B, D/2]
        angles = (position.float()[:, None] * self._frequencies).expand(len(self._token), -1)
        cos, sin = angles.cos().contiguous(), angles.sin().contiguous()
        hidden = model.embed_tokens(self._token)  # [B, C]
        few = len(hidden) <= MAX_ROWS
        for layer, block in enumerate(model.layers):
            attention, mlp = block.self_attn, block.mlp
            projections = [
                attention.q_proj.weight,
                attention.k_proj.weight,
                attention.v_proj.weight,
            ]
            norm, eps = block.input_layernorm, config.rms_norm_eps
            if few:  # [B, (H + 2 H_kv) D]
                qkv = few_rows_linear(hidden, projections, norm=norm.weight, eps=eps)
            else:
                normed = norm(hidden)
                qkv = torch.cat([F.linear(normed, weight) for weight in projections], dim=1)
            attended = ring_attention(  # [B, H D]
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
