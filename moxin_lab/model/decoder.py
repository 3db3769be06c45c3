"""The 36-block decoder: embedding, pre-RMSNorm blocks of windowed grouped-query attention and
SwiGLU, norm, head.

Guarantees: parameters have the names and shapes of transformers' `MistralForCausalLM`, and the same
weights give the same logits (1e-5 in float32, tests/model/test_parity.py); packed documents never
see each other; `init_weights` gives the same weights for the same seed. There are no buffers, so a
model built on the meta device has nothing to restore but its parameters.
Out of scope: the loss (training computes it from `forward` or `hidden_states`), loading and saving
(convert.py), sampling (generate.py).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from moxin_lab.model.attention import attention, choose_backend, resolve_backend
from moxin_lab.model.cache import KeyValueCache
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.mask import AttentionMask


def local(weight: Tensor) -> Tensor:
    """The weight, or this rank's part of one that tensor parallelism has split."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class Linear(nn.Linear):
    """`nn.Linear` without a bias, and without the default initialisation, which `init_weights`
    would overwrite. A weight that is split by tensor parallelism is multiplied as this rank's part,
    and the block's sums over ranks are those of pretraining/parallel.py.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, local(self.weight))


def joins(hidden_states: Tensor) -> bool:
    """Whether projections of one input run as one product over joined weights: in compiled training
    on a GPU, where the gradient of a narrow projection alone has too few tiles.
    """
    return torch.compiler.is_compiling() and torch.is_grad_enabled() and hidden_states.is_cuda


def project(hidden_states: Tensor, *linears: Linear) -> Tensor:
    """The outputs of several projections side by side, by one product."""
    return F.linear(hidden_states, torch.cat([local(linear.weight) for linear in linears]))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467), computed in
    float32.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, local(self.weight), self.eps)


def rotary_angles(position_ids: Tensor, config: MoxinConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of position x theta^(-2i/D), float32 [B or 1, T, 1, D], as `rotate` reads them.

    Pair i consists of the dimensions i and i + D/2, and the first half of sin carries the minus
    sign of the rotation (Su et al. 2021, arXiv 2104.09864, in the half-split layout of the released
    weights). Angles are float32 whatever the dtype of the weights: bfloat16 cannot distinguish
    neighbouring positions beyond 256.
    """
    even_dims = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=position_ids.device)
    exponents = even_dims / config.head_dim  # [D/2]
    # [B or 1, T, 1, 1] x [D/2] -> [B or 1, T, 1, D/2]
    angles = position_ids[:, :, None, None].float() * (1.0 / config.rope_theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + D/2) of heads [B, T, H, D] by its angle."""
    # Under autocast the projections are narrower than the angles.
    cos, sin = cos.to(heads.dtype), sin.to(heads.dtype)
    # Rolling takes fewer passes over memory than negating and joining halves does, which is a tenth
    # of a block's time on the CPU at tiny width.
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: MoxinConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout_p = config.attention_dropout
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, kv_width)
        self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_proj = Linear(width, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: KeyValueCache | None,
        backend: str,
    ) -> Tensor:
        batch, length, _ = hidden_states.shape
        shape = (batch, length, -1, self.head_dim)
        # [B, T, C] -> [B, T, H * D] -> [B, T, H, D], rotated -> [B, H, T, D]
        if joins(hidden_states):
            from moxin_lab.kernels.joined import split_heads

            projected = project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
            heads = len(local(self.q_proj.weight)) // self.head_dim
            kv_heads = len(local(self.k_proj.weight)) // self.head_dim
            query, key, value = split_heads(projected, *rotary, heads, kv_heads)
        else:
            query = rotate(self.q_proj(hidden_states).view(shape), *rotary)
            key = rotate(self.k_proj(hidden_states).view(shape), *rotary)
            value = self.v_proj(hidden_states).view(shape)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            key, value = cache.update(self.layer, key, value)  # [B, H_kv, S, D]
        dropout_p = self.dropout_p if self.training else 0.0
        output = attention(query, key, value, mask, dropout_p=dropout_p, backend=backend)
        # [B, H, T, D] -> [B, T, H * D] -> [B, T, C]
        return self.o_proj(output.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: MoxinConfig) -> None:
        super().__init__()
        self.dropout_p = config.mlp_dropout
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if joins(hidden_states):
            from moxin_lab.kernels.joined import swiglu

            inner = swiglu(project(hidden_states, self.gate_proj, self.up_proj))
        else:
            inner = F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return F.dropout(self.down_proj(inner), self.dropout_p, self.training)


class Block(nn.Module):
    """One transformer block: norm, attention, add; norm, feed-forward, add."""

    def __init__(self, config: MoxinConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: KeyValueCache | None,
        backend: str,
    ) -> Tensor:
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states), rotary, mask, cache, backend
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Decoder(nn.Module):
    """Everything below the head. It is a separate module so that parameter names start with
    `model.`, as in transformers.
    """

    def __init__(self, config: MoxinConfig) -> None:
        super().__init__()
        # From an empty tensor: the constructor of nn.Embedding would draw random values first.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


# mm is every projection. The products inside attention (bmm in the reference) are not saved: they
# grow with the square of the length. A fused attention with dropout must not be saved either: if it
# did not run again, later dropouts would start from a different random state.
SAVED_OPERATIONS = [torch.ops.aten.mm.default]
ACTIVATION_CHECKPOINTING = {
    "none": None,
    "selective": partial(
        checkpoint,
        use_reentrant=False,
        context_fn=partial(create_selective_checkpoint_contexts, SAVED_OPERATIONS),
    ),
    "full": partial(checkpoint, use_reentrant=False),
}


class MoxinForCausalLM(nn.Module):
    """The language model.

    generator: source of the initial weights (see `init_weights`).
    attention_backend: see attention.py.
    activation_checkpointing: what a training step keeps of each block for the backward pass (Chen
        et al. 2016, arXiv 1604.06174). "none": everything. "full": the input of the block; the
        block runs again in the backward pass, for about a third more arithmetic. "selective": the
        input and the outputs of the projections; norms, rotation, attention and SiLU run again,
        projections do not.

    Losses and gradients are the same with every choice, dropout included, and bit for bit if the
    operations are deterministic, as on the CPU. Checkpointing applies in training mode with
    gradients and without a cache; it may be assigned between steps and is not part of the
    configuration. Raises ValueError for an unknown name.
    """

    def __init__(
        self,
        config: MoxinConfig,
        *,
        generator: torch.Generator | None = None,
        attention_backend: str = "auto",
        activation_checkpointing: str = "none",
    ) -> None:
        super().__init__()
        self.config = config
        self.attention_backend = resolve_backend(attention_backend)
        self.activation_checkpointing = activation_checkpointing
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.tie_weights()
        self.init_weights(generator)

    @property
    def activation_checkpointing(self) -> str:
        return self._activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, name: str) -> None:
        if name not in ACTIVATION_CHECKPOINTING:
            raise ValueError(
                f"unknown activation_checkpointing {name!r}: "
                f"available are {', '.join(ACTIVATION_CHECKPOINTING)}"
            )
        self._activation_checkpointing = name

    def tie_weights(self) -> None:
        """Make the head the embedding's matrix if the configuration says so. Called by the
        constructor, and needed again after `load_state_dict(..., assign=True)`.
        """
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights; the same generator state gives the same weights.

        Matrices are normal with standard deviation `initializer_range`, norms are one. The two
        matrices that write into the residual stream (o_proj, down_proj) have the deviation divided
        by sqrt(2 x num_hidden_layers), so that the variance of the stream at the top does not grow
        with depth (Radford et al. 2019, GPT-2). The report mentions a "custom initialization
        scheme" without a formula; this one is our choice.
        """
        std = self.config.initializer_range
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0.0, residual_std, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The input of the head: states after the last norm, [B, T, hidden_size]. Arguments as in
        `forward`.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, not [B, T]")
        return self.hidden_states_from_embeddings(
            self.model.embed_tokens(input_ids),
            position_ids=position_ids,
            document_ids=document_ids,
            cache=cache,
        )

    def hidden_states_from_embeddings(
        self,
        embeddings: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """`hidden_states` from given embeddings [B, T, C] in place of `embed_tokens(input_ids)`,
        for example of text and image patches.
        """
        batch, length, _ = embeddings.shape
        first = 0 if cache is None else cache.length
        self._check_inputs(batch, length, document_ids, cache)
        window, device = self.config.sliding_window, embeddings.device
        if cache is None:
            mask = AttentionMask.build(
                length, sliding_window=window, document_ids=document_ids, device=device
            )
        else:
            mask = cache.begin(length, window)
        if position_ids is None:
            positions = torch.arange(first, first + length, device=device)[None]  # [1, T]
            position_ids = positions if cache is None else cache.position_ids(positions)
        rotary = rotary_angles(position_ids, self.config)
        hidden_states = embeddings
        recompute = ACTIVATION_CHECKPOINTING[self.activation_checkpointing]
        # Without gradients nothing is kept for a backward pass, and with a cache a block that runs
        # again would write its keys twice.
        if not (self.training and cache is None and torch.is_grad_enabled()):
            recompute = None
        backend = self.attention_backend
        if backend == "auto":  # chosen once for all blocks, from the dtype and shape of a query
            dropout_p = self.config.attention_dropout if self.training else 0.0
            backend = choose_backend(self._query_like(hidden_states), mask, dropout_p)
        mask.prepare(backend)
        for block in self.model.layers:
            arguments = (hidden_states, rotary, mask, cache, backend)
            hidden_states = block(*arguments) if recompute is None else recompute(block, *arguments)
        if cache is not None:
            cache.commit(length)
        return self.model.norm(hidden_states)

    def _check_inputs(
        self, batch: int, length: int, document_ids: Tensor | None, cache: KeyValueCache | None
    ) -> None:
        if document_ids is not None and document_ids.shape != (batch, length):
            raise ValueError(
                f"document_ids has shape {tuple(document_ids.shape)}, input_ids {(batch, length)}"
            )
        if cache is not None and document_ids is not None:
            raise ValueError(
                "document_ids cannot be combined with a cache, which holds one document per row: "
                "pass padding to the cache instead"
            )
        if cache is not None and cache.keys.shape[1] != batch:
            raise ValueError(
                f"the cache has {cache.keys.shape[1]} rows and input_ids has {batch}: "
                "they must be equal"
            )
        if length == 0:
            raise ValueError("input_ids has no tokens")
        num_tokens = length if cache is None else cache.length - cache.oldest + length
        limit = self.config.max_position_embeddings
        if num_tokens > limit:
            raise ValueError(
                f"{num_tokens} tokens are more than max_position_embeddings {limit}: "
                "shorten the text"
            )

    def _query_like(self, hidden_states: Tensor) -> Tensor:
        """A tensor [B, H, T, D] with the shape, dtype and device of the queries that a block
        computes from `hidden_states`; one number of storage.
        """
        device_type = hidden_states.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = (
            torch.get_autocast_dtype(device_type)
            if autocast
            else self.model.layers[0].self_attn.q_proj.weight.dtype
        )
        batch, length, _ = hidden_states.shape
        shape = batch, self.config.num_attention_heads, length, self.config.head_dim
        return hidden_states.new_empty(1, dtype=dtype).expand(shape)

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab_size] of the token after each position.

            input_ids [B, T]       position_ids [B or 1, T]     document_ids, window, cache
                  |                         |                               |
            embed_tokens                cos, sin                      AttentionMask
                  |                         |                               |
            residual [B, T, C]              | (both computed once)          |
            +---- | ----------------------- | ----------------------------- | -----------+
            |     |-> RMSNorm -> q, k, v -> rotate q and k -> (cache) -> attention       |
            |     |                                                         |            |
            |     + <------------------------ o_proj <----------------------+            |
            |     |                                                                      |
            |     |-> RMSNorm -> silu(gate_proj) * up_proj -> down_proj --+              |
            |     |                                                       |              |
            |     + <-----------------------------------------------------+              |
            +---- | --------------------------------- block, num_hidden_layers times ----+
                  |
               RMSNorm -> hidden_states() [B, T, C]
                  |
               lm_head -> logits [B, T, V]

        Args:
            input_ids: int64 [B, T].
            position_ids: int64 [B or 1, T], the rotary positions. Default: positions in the row,
                which with a cache continue after the tokens that it holds. Only differences of
                positions matter, so packed documents need no restart.
            document_ids: int64 [B, T] of packed rows: tokens see only tokens of their own document;
                -1 is padding.
            cache: keys and values of earlier tokens, which `input_ids` continue (any number of
                tokens at a time).
            logits_to_keep: compute logits of the last `logits_to_keep` positions only.

        Raises ValueError for shapes that do not fit and for more tokens than
        `max_position_embeddings`.
        """
        if logits_to_keep is not None and logits_to_keep < 1:
            raise ValueError(f"logits_to_keep is {logits_to_keep}: it must be at least 1")
        hidden_states = self.hidden_states(
            input_ids, position_ids=position_ids, document_ids=document_ids, cache=cache
        )
        if logits_to_keep is not None:
            hidden_states = hidden_states[:, -logits_to_keep:]
        return self.lm_head(hidden_states)
