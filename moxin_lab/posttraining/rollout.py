"""Completions for reinforcement learning: one small protocol, and our own engine behind it.

    prompts x samples -> prefill, once a prompt -> ring -> [step, draw, record] x tokens -> Rollout
                                                    ^ finished rows are dropped, the rest moves together

`RolloutEngine` is what the trainer calls; an engine of another library (vLLM, SGLang) has to offer these two methods and nothing
else. `RingEngine` decodes on the ring of `model/cache.py`. On a GPU a whole token, from embedding to the drawn id, is one CUDA
graph, and the host looks at the device once every `check_every` tokens; on the CPU the same step runs eagerly.

Convention of log-probabilities: of the softmax of logits / temperature over the whole vocabulary, before top-p cuts it, which is
what the trainer computes from the same tokens (float32: equal to 1e-4, tests/posttraining/test_rollout.py).

Guarantees: a completion depends on weights, prompt, seed and its row's number only, not on which rows end before it or how rows
are batched (up to rounding of matrix products of other sizes); equal calls give equal bytes on the CPU; memory does not grow
beyond the ring. Does not: admit new prompts into a running batch, score a text, or speak to a server.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moxin_lab.model import decode
from moxin_lab.model.cache import FullCache, RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM, rotary_angles, rotate

Finish = Literal["eos", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """samples: completions a prompt. max_new_tokens: response budget, the end token included.

    Raises ValueError for a temperature that is not above 0, a top_p outside (0, 1], and numbers below 1.
    """

    samples: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; give 1 or more completions a prompt")
        if self.max_new_tokens < 1:
            raise ValueError(f"the response budget is {self.max_new_tokens} tokens (max_new_tokens); give 1 or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; sampling needs more than 0 (greedy: `generate`)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a number above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class Rollout:
    """N = prompts x samples completions, on the CPU; row r answers prompt r // samples.

    prompt_ids: N lists. completion_ids: int64 [N, T], padded behind the end. completion_mask: bool [N, T], generated tokens, the
    end token included. log_probs: float32 [N, T], see the module's text; 0 where the mask is off. finish_reasons: eos or length,
    which came first. version: of the weights that sampled. seconds: wall clock of the call.
    """

    prompt_ids: list[list[int]]
    completion_ids: Tensor
    completion_mask: Tensor
    log_probs: Tensor
    finish_reasons: list[Finish]
    samples: int
    version: int
    seconds: float = 0.0

    @property
    def lengths(self) -> Tensor:
        """Generated tokens a row, int64 [N]."""
        return self.completion_mask.sum(dim=1)

    def tokens(self, row: int) -> list[int]:
        """Generated ids of a row, the end token included."""
        return self.completion_ids[row, : int(self.completion_mask[row].sum())].tolist()

    def texts(self, tokenizer: Any) -> list[str]:
        """Completions as text, without special tokens."""
        rows = [ids[:length] for ids, length in zip(self.completion_ids.tolist(), self.lengths.tolist(), strict=True)]
        return tokenizer.batch_decode(rows, skip_special_tokens=True)


class RolloutEngine(Protocol):
    """What samples completions. `generate` returns rows in the order of the prompts, `samples` neighbours each."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int) -> Rollout: ...

    def update_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Take over the trainer's weights, under transformers' names; `version` goes into the rollouts made with them."""
        ...


def draw(logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """A token a row, int64 [B], and its log-probability at the temperature, float32 [B], from logits [B, V] and uniform [B].

    The first token whose cumulative probability exceeds `uniform`: one number a row decides, so a row's draws do not depend on
    other rows. uniform must lie in [0, 1 - 2^-22], so that no rounding leads behind the last token.
    """
    scaled = logits.float() / temperature
    scaled = scaled.sub_(scaled.amax(dim=-1, keepdim=True))  # a tensor of our own, and the largest there is
    weights = scaled.exp()
    total = weights.sum(dim=-1)
    if top_p < 1:
        ordered, ids = weights.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        weights = weights.scatter(-1, ids, ordered.masked_fill(before >= top_p * total[:, None], 0.0))
    token = _first_above(weights, uniform)
    log_probs = scaled.gather(-1, token[:, None])[:, 0] - total.log()
    return token, log_probs


def _first_above(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index of the first of weights [B, V] at which their cumulative sum exceeds uniform x the whole, int64 [B].

    First among blocks of 128 and then within one: a running sum over the vocabulary is slow on the CPU and on a GPU alike.
    """
    rows, width = weights.shape
    whole = F.pad(weights, (0, -width % 128)) if width % 128 else weights
    blocks = whole.view(rows, -1, 128)
    cumulative = blocks.sum(dim=-1).cumsum(dim=-1)
    wanted = uniform[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, wanted, right=True)
    before = F.pad(cumulative, (1, 0)).gather(-1, block)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, 128))[:, 0].cumsum(dim=-1)
    # The two sums of a block differ by rounding; what lies behind the smaller one belongs to its last token.
    place = torch.searchsorted(within, torch.minimum(wanted - before, within[:, -1:] * (1 - 2**-22)), right=True)
    return (block * 128 + place)[:, 0]


# ------------------------------------------------------------------------------------------------------------------ engine


@dataclass(eq=False)
class _Batch:
    """Rows that are decoded together, in buffers that keep their place, so that a graph can be replayed on them."""

    token: Tensor  # int64 [B], the last one drawn
    ended: Tensor  # bool [B]
    padding: Tensor  # int32 [B], left padding of the prompt
    uniform: Tensor  # float32 [T, B]
    tokens: Tensor  # int64 [T, B], what was drawn
    log_probs: Tensor  # float32 [T, B]
    place: Tensor  # int64 [1], tokens drawn so far
    length: Tensor  # int32 [1], tokens in the ring
    temperature: Tensor  # float32 []
    cache: RollingCache  # its first B rows of the engine's ring
    top_p: float
    workspace: Any = None
    graph: "torch.cuda.CUDAGraph | None" = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        return len(self.token)


class RingEngine:
    """Sampling with a copy of `model`'s weights.

    dtype: of the copy; default bfloat16 on a GPU, else the model's. max_rows: completions decoded together; others follow.
    check_every: tokens between two looks at which rows have ended. kernels: attention by the ring kernel (default: where it
    runs on a GPU); graph: a CUDA graph a token (default: with the kernels on a GPU).
    """

    def __init__(
        self,
        model: MoxinForCausalLM,
        *,
        eos_token_id: int,
        pad_token_id: int,
        version: int = 0,
        max_rows: int = 512,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        check_every: int | None = None,
        kernels: bool | None = None,
        graph: bool | None = None,
        prefill_tokens: int = 65_536,
    ) -> None:
        if max_rows < 1 or prefill_tokens < 1:
            raise ValueError(f"max_rows {max_rows} and prefill_tokens {prefill_tokens} must be at least 1")
        weight = model.lm_head.weight
        self.device = torch.device(weight.device if device is None else device)
        on_gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if on_gpu else weight.dtype)
        with torch.device("meta"):
            self.model = MoxinForCausalLM(model.config).to(self.dtype)
        self.model = self.model.to_empty(device=self.device).eval().requires_grad_(False)
        self.model.attention_backend = model.attention_backend
        self.model.load_state_dict(model.state_dict())
        self._joined = [_join(block) for block in self.model.model.layers]
        self.eos_token_id, self.pad_token_id, self.version, self.max_rows = (
            eos_token_id,
            pad_token_id,
            version,
            max_rows,
        )
        refused = decode.refusal(self.model, self.device)
        self.kernels = (on_gpu and refused is None) if kernels is None else kernels
        if self.kernels and refused is not None:
            raise ValueError(f"the decoding kernels cannot run: {refused}")
        self.graph = (on_gpu and self.kernels) if graph is None else graph
        self.check_every = check_every or (16 if on_gpu else 1)
        self.prefill_tokens = prefill_tokens
        self._ring: RollingCache | None = None
        self._batches: dict[tuple[int, float], _Batch] = {}
        self._pool: Any = None

    def update_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Copy into the engine's own tensors, whose place captured graphs know. Raises RuntimeError for other names or shapes."""
        self.model.load_state_dict(state_dict, strict=True)
        self.version = version

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int) -> Rollout:
        """`samples` completions of each prompt. Raises ValueError for no prompts, an empty one, or more tokens than positions."""
        begin = time.perf_counter()
        if not len(prompts):
            raise ValueError("there are no prompts: the prompt set is empty or everything was filtered out")
        longest, limit = max(map(len, prompts)), self.model.config.max_position_embeddings
        if not min(map(len, prompts)):
            raise ValueError(f"prompt {min(range(len(prompts)), key=lambda i: len(prompts[i]))} has no token")
        if longest + sampling.max_new_tokens > limit:
            raise ValueError(
                f"{longest} tokens of prompt and {sampling.max_new_tokens} new ones are more than the {limit} positions"
            )
        samples, budget = sampling.samples, sampling.max_new_tokens
        number = len(prompts) * samples
        noise = torch.rand(number, budget, generator=torch.Generator().manual_seed(seed)).clamp_(max=1 - 2**-22)
        # Prompts of similar length together, so that little is padded.
        order = sorted(range(number), key=lambda row: (-len(prompts[row // samples]), row))
        tokens = torch.full((budget, number), self.pad_token_id)
        log_probs = torch.zeros(budget, number)
        for start in range(0, number, self.max_rows):
            rows = order[start : start + self.max_rows]
            self._decode([prompts[row // samples] for row in rows], rows, noise, sampling, tokens, log_probs)
        tokens, log_probs = tokens.T, log_probs.T
        ends = tokens == self.eos_token_id
        mask = ends.cumsum(dim=1) - ends.long() == 0
        width = int(mask.sum(dim=1).max())
        mask, tokens, log_probs = mask[:, :width], tokens[:, :width], log_probs[:, :width]
        finish: list[Finish] = ["eos" if ended else "length" for ended in ends.any(dim=1).tolist()]
        return Rollout(
            [list(prompts[row // samples]) for row in range(number)],
            tokens.masked_fill(~mask, self.pad_token_id),
            mask.contiguous(),
            log_probs.masked_fill(~mask, 0.0),
            finish,
            samples,
            self.version,
            time.perf_counter() - begin,
        )

    # ------------------------------------------------------------------------------------------------- one batch of rows

    def _decode(
        self, prompts: list[Sequence[int]], rows: list[int], noise: Tensor, sampling: SamplingSettings, tokens: Tensor,
        log_probs: Tensor,
    ) -> None:  # fmt: skip
        """Complete `prompts`, the rollout's rows `rows`, into their columns of tokens and log_probs [budget, N]."""
        budget = sampling.max_new_tokens
        logits, prompt_of, prompt_padding, prefilled = self._prefill(prompts)
        batch = self._batch(len(rows), sampling)
        self._fill(prefilled, prompt_of)
        batch.padding.copy_(prompt_padding[prompt_of])
        batch.uniform[:budget].copy_(noise[rows].T)
        batch.ended.zero_()
        batch.place.zero_()
        self._set_length(batch, prefilled.length)
        del prefilled
        columns = torch.tensor(rows)
        self._record(batch, logits[prompt_of])
        done, written = 1, 0
        while done < budget:
            if done % self.check_every == 0:
                alive = (~batch.ended).nonzero()[:, 0]
                if not len(alive):
                    break
                smaller = self._smaller(len(alive), batch.rows)
                if smaller is not None:
                    self._write(batch, columns, written, done, tokens, log_probs)
                    batch, columns = self._compact(batch, columns, alive, smaller, sampling)
                    written = done
            self._advance(batch)
            done += 1
        self._write(batch, columns, written, done, tokens, log_probs)

    def _prefill(self, prompts: list[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor, FullCache]:
        """Each different prompt once: last logits [U, V], the prompt of each row [B], padding int32 [U], and the cache."""
        unique: dict[tuple[int, ...], int] = {}
        prompt_of = [unique.setdefault(tuple(prompt), len(unique)) for prompt in prompts]
        width = max(map(len, unique))
        ids = torch.full((len(unique), width), self.pad_token_id)
        for row, prompt in enumerate(unique):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
        padding = torch.tensor([width - len(prompt) for prompt in unique])
        ids, padding = ids.to(self.device), padding.to(self.device)
        options = {"padding": padding, "dtype": self.dtype, "device": self.device}
        cache = FullCache(self.model.config, len(unique), num_tokens=width, **options)
        for chunk in ids.split(max(1, self.prefill_tokens // len(unique)), dim=1):
            logits = self.model(chunk, cache=cache, logits_to_keep=1)
        return logits[:, -1], torch.tensor(prompt_of, device=self.device), padding.int(), cache

    def _fill(self, prefilled: FullCache, prompt_of: Tensor) -> None:
        """The prompts' keys and values into the ring's rows."""
        assert self._ring is not None
        end, slots, rows = prefilled.length, self._ring.num_slots, len(prompt_of)
        places = torch.arange(max(0, end - slots), end, device=self.device)
        for ring, full in ((self._ring.keys, prefilled.keys), (self._ring.values, prefilled.values)):
            for mine, theirs in zip(ring, full, strict=True):
                if end <= slots:
                    mine[:rows, :, :end] = theirs[prompt_of]
                else:
                    mine[:rows, :, places % slots] = theirs[:, :, places][prompt_of]

    def _batch(self, rows: int, sampling: SamplingSettings) -> _Batch:
        """Buffers for so many rows; where a graph works on them, kept with it from call to call."""
        if self._ring is None or self._ring.keys.shape[1] < rows:
            self._batches.clear()  # their graphs write into the old ring
            self._ring = None
            self._ring = RollingCache(self.model.config, rows, dtype=self.dtype, device=self.device)
        batch = self._batches.get((rows, sampling.top_p))
        if batch is None or len(batch.uniform) < sampling.max_new_tokens:
            batch = self._new_batch(rows, sampling)
            if self.graph:
                self._batches[rows, sampling.top_p] = batch
        batch.temperature.fill_(sampling.temperature)
        return batch

    def _new_batch(self, rows: int, sampling: SamplingSettings) -> _Batch:
        assert self._ring is not None
        cache = copy.copy(self._ring)
        cache.keys, cache.values = self._ring.keys[:, :rows], self._ring.values[:, :rows]
        budget, device = sampling.max_new_tokens, self.device
        workspace = None
        if self.kernels:
            from moxin_lab.kernels.decode import RingWorkspace

            _, _, kv_heads, num_slots, head_dim = cache.keys.shape
            workspace = RingWorkspace(rows, kv_heads, head_dim, num_slots, device)
        return _Batch(
            token=torch.zeros(rows, dtype=torch.int64, device=device),
            ended=torch.zeros(rows, dtype=torch.bool, device=device),
            padding=torch.zeros(rows, dtype=torch.int32, device=device),
            uniform=torch.zeros(budget, rows, device=device),
            tokens=torch.zeros(budget, rows, dtype=torch.int64, device=device),
            log_probs=torch.zeros(budget, rows, device=device),
            place=torch.zeros(1, dtype=torch.int64, device=device),
            length=torch.zeros(1, dtype=torch.int32, device=device),
            temperature=torch.ones((), device=device),
            cache=cache,
            top_p=sampling.top_p,
            workspace=workspace,
        )

    def _set_length(self, batch: _Batch, length: int) -> None:
        batch.cache.length = length
        batch.length.fill_(length)

    def _smaller(self, alive: int, rows: int) -> int | None:
        """Rows to go on with, if it pays to move them. A graph serves one number of rows, so on a GPU rows are halved."""
        if not self.graph:
            return alive if alive <= 0.75 * rows else None
        half = rows // 2
        return half if half >= 32 and alive <= half else None

    def _compact(
        self, batch: _Batch, columns: Tensor, alive: Tensor, rows: int, sampling: SamplingSettings
    ) -> tuple[_Batch, Tensor]:
        """The same rows without (most of) those that have ended, and the rollout's row of each."""
        assert self._ring is not None
        kept = torch.cat((alive, batch.ended.nonzero()[: rows - len(alive), 0]))
        smaller = self._batch(rows, sampling)
        held = min(batch.cache.length, batch.cache.num_slots)
        for ring in (self._ring.keys, self._ring.values):
            for layer in ring:
                layer[:rows, :, :held] = layer[:, :, :held][kept]
        for name in ("token", "ended", "padding"):
            getattr(smaller, name).copy_(getattr(batch, name)[kept])
        smaller.uniform[: sampling.max_new_tokens] = batch.uniform[: sampling.max_new_tokens, kept]
        smaller.place.copy_(batch.place)
        self._set_length(smaller, batch.cache.length)
        return smaller, columns[kept.cpu()]

    def _write(self, batch: _Batch, columns: Tensor, first: int, end: int, tokens: Tensor, log_probs: Tensor) -> None:
        tokens[first:end, columns] = batch.tokens[first:end].cpu()
        log_probs[first:end, columns] = batch.log_probs[first:end].cpu()

    # ------------------------------------------------------------------------------------------------------- one token

    def _advance(self, batch: _Batch) -> None:
        """One token more for every row; with a graph, its replay and nothing else."""
        if not self.graph:
            self._token(batch)
        else:
            if batch.graph is None:
                self._capture(batch)
            assert batch.graph is not None
            batch.graph.replay()
        batch.cache.commit(1)

    def _token(self, batch: _Batch) -> None:
        logits = self._logits(batch)
        batch.length += 1
        self._record(batch, logits)

    def _record(self, batch: _Batch, logits: Tensor) -> None:
        uniform = batch.uniform.index_select(0, batch.place)[0]
        token, log_probs = draw(logits, uniform, batch.temperature, batch.top_p)
        token = torch.where(batch.ended, self.pad_token_id, token)
        batch.tokens.index_copy_(0, batch.place, token[None])
        batch.log_probs.index_copy_(0, batch.place, log_probs[None])
        batch.ended |= token == self.eos_token_id
        batch.token.copy_(token)
        batch.place += 1

    def _capture(self, batch: _Batch) -> None:
        """Compile outside the graph first; what that run changed is put back (the ring's slot is written again, the same)."""
        state = {name: getattr(batch, name).clone() for name in ("token", "ended", "place", "length")}
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._token(batch)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        for name, value in state.items():
            getattr(batch, name).copy_(value)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        batch.graph = torch.cuda.CUDAGraph()
        # Another thread may train meanwhile: its allocations are none of this capture's business.
        with torch.cuda.graph(batch.graph, pool=self._pool, capture_error_mode="thread_local"):
            self._token(batch)

    def _logits(self, batch: _Batch) -> Tensor:
        """The decoder for one token a row, [B, V], with joined matrices; the ring takes the token's keys and values."""
        decoder, config = self.model.model, self.model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        attend = self._kernel_attention(batch) if self.kernels else self._plain_attention(batch)
        hidden = decoder.embed_tokens(batch.token)
        for layer, (block, (qkv_weight, gate_up)) in enumerate(zip(decoder.layers, self._joined, strict=True)):
            qkv = F.linear(block.input_layernorm(hidden), qkv_weight)
            attended = attend(layer, qkv, heads, kv_heads)
            hidden = torch.addmm(hidden, attended, block.self_attn.o_proj.weight.T)
            gate, up = F.linear(block.post_attention_layernorm(hidden), gate_up).chunk(2, dim=1)
            hidden = torch.addmm(hidden, F.silu(gate).mul_(up), block.mlp.down_proj.weight.T)
        return self.model.lm_head(decoder.norm(hidden))

    def _kernel_attention(self, batch: _Batch) -> Any:
        from moxin_lab.kernels.decode import ring_attention

        config, cache = self.model.config, batch.cache
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=self.device) / config.head_dim
        position = (batch.length - batch.padding).clamp(min=0)
        angles = position.float()[:, None] * (1.0 / config.rope_theta**exponents)
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

    def _plain_attention(self, batch: _Batch) -> Any:
        config, cache = self.model.config, batch.cache
        length, slots, dim = cache.length, cache.num_slots, config.head_dim
        slot, held = length % slots, min(length + 1, slots)
        cos, sin = rotary_angles((length - batch.padding)[:, None], config)  # [B, 1, 1, D]
        cos, sin = cos[:, 0], sin[:, 0]
        places = torch.arange(held, device=self.device)
        places = length - (length - places) % slots  # of the token in each slot
        seen = None
        if bool((batch.padding > max(0, length + 1 - slots)).any()):
            seen = (places >= batch.padding[:, None])[:, None, None]  # [B, 1, 1, held]

        def attend(layer: int, qkv: Tensor, heads: int, kv_heads: int) -> Tensor:
            rows = len(qkv)
            turned = rotate(qkv[:, : (heads + kv_heads) * dim].view(rows, -1, dim), cos, sin)
            keys, values = cache.keys[layer], cache.values[layer]
            keys[:, :, slot] = turned[:, heads:]
            values[:, :, slot] = qkv[:, (heads + kv_heads) * dim :].view(rows, kv_heads, dim)
            # The queries of one key/value head are its rows: nothing is repeated.
            query = turned[:, :heads].reshape(rows, kv_heads, heads // kv_heads, dim)
            output = F.scaled_dot_product_attention(query, keys[:, :, :held], values[:, :, :held], attn_mask=seen)
            return output.reshape(rows, heads * dim)

        return attend


def _join(block: nn.Module) -> tuple[Tensor, Tensor]:
    """The block's query, key, value matrices as one, and gate and up as one; its parameters become views of these."""
    joined = []
    for owner, names in ((block.self_attn, ("q_proj", "k_proj", "v_proj")), (block.mlp, ("gate_proj", "up_proj"))):
        modules = [getattr(owner, name) for name in names]
        together = torch.cat([module.weight.data for module in modules])
        for module, part in zip(modules, together.split([len(module.weight) for module in modules]), strict=True):
            module.weight = nn.Parameter(part, requires_grad=False)
        joined.append(together)
    return joined[0], joined[1]
