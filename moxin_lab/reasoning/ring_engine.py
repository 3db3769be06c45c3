"""Our rollout engine: sampling on the ring of `model/cache.py` with a copy of the weights.

    prompts -> prefill, once per prompt -> ring -> [step, draw, record] x tokens -> Rollout
                                                   finished rows are dropped, the rest compacted

On a GPU a whole token, from embedding to the drawn id, is one CUDA graph, and the host reads from
the device once every `check_every` tokens; on the CPU the same step runs eagerly.

Guarantees: a completion depends on weights, prompt, seed and its row's index only, not on which
rows end earlier or how rows are batched (up to rounding of matrix products of other sizes); equal
calls give equal bytes on the CPU; memory does not grow beyond the ring
(tests/reasoning/test_rollout.py).
Out of scope: admitting new prompts into a running batch, scoring a text, speaking to a server.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from moxin_lab.model import decode
from moxin_lab.model.cache import FullCache, RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.reasoning.rollout import Decoding, Finish, Rollout, SamplingSettings, end_token_ids
from moxin_lab.reasoning.token_step import Batch, TokenStep

MAX_ROWS = 512  # Moxin's 64 prompts x 8


class RingEngine:
    """Sampling with a copy of `model`'s weights.

    dtype: of the copy; default bfloat16 on a GPU, else the model's. max_rows: completions decoded
    together; the others follow in further batches (default: 512, on a GPU at most what half of its
    free memory can hold). check_every: tokens between two checks of which rows have ended.
    kernels: attention by the ring kernel (default: where it runs on a GPU). graph: a CUDA graph per
    token (default: with the kernels on a GPU).

    Raises ValueError for kernels that cannot run here and a graph without them or without a GPU.
    """

    def __init__(
        self,
        model: MoxinForCausalLM,
        *,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
        version: int = 0,
        max_rows: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        check_every: int | None = None,
        kernels: bool | None = None,
        graph: bool | None = None,
        prefill_tokens: int = 65_536,
    ) -> None:
        if (max_rows is not None and max_rows < 1) or prefill_tokens < 1:
            raise ValueError(
                f"max_rows {max_rows} and prefill_tokens {prefill_tokens} must be at least 1"
            )
        weight = model.lm_head.weight
        self.device = torch.device(weight.device if device is None else device)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            self.device = torch.device(
                "cuda",
                torch.cuda.current_device() if self.device.index is None else self.device.index,
            )
            gc.collect()  # the ring of an earlier training may still be in a reference cycle
            torch.cuda.empty_cache()
        self.dtype = dtype or (torch.bfloat16 if on_gpu else weight.dtype)
        with torch.device("meta"):
            self.model = MoxinForCausalLM(model.config).to(self.dtype)
        self.model = self.model.to_empty(device=self.device).eval().requires_grad_(False)
        self.model.attention_backend = model.attention_backend
        self.model.load_state_dict(model.state_dict())
        self.eos_token_ids = end_token_ids(eos_token_id)
        self.pad_token_id, self.version = pad_token_id, version
        if max_rows is None:
            row_bytes = RollingCache(self.model.config, 1, dtype=self.dtype, device="meta").nbytes
            max_rows = (
                rows_that_fit(torch.cuda.mem_get_info(self.device)[0] // 2, row_bytes)
                if on_gpu
                else MAX_ROWS
            )
        self.max_rows = max_rows
        refused = decode.unsupported_reason(self.model, self.device)
        self.kernels = (on_gpu and refused is None) if kernels is None else kernels
        if self.kernels and refused is not None:
            raise ValueError(f"the decoding kernels cannot run: {refused}")
        self.graph = (on_gpu and self.kernels) if graph is None else graph
        if self.graph and not (on_gpu and self.kernels):
            raise ValueError(
                "a CUDA graph needs a GPU and the decoding kernels: plain attention reads lengths "
                "on the host"
            )
        self.check_every = check_every or (16 if on_gpu else 1)
        self.prefill_tokens = prefill_tokens
        self._ring: RollingCache | None = None
        self._batches: dict[tuple[int, float], Batch] = {}
        with self._on_device():
            self._step = TokenStep(
                self.model,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=pad_token_id,
                kernels=self.kernels,
                graph=self.graph,
            )

    def update_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Copy into the engine's own tensors, whose addresses captured graphs hold. Raises
        RuntimeError for other names or shapes.
        """
        with self._on_device():
            self.model.load_state_dict(state_dict, strict=True)
        self.version = version

    def _on_device(self) -> AbstractContextManager[Any]:
        """Triton and graph captures go to the current GPU, which need not be the one where this
        engine's tensors are.
        """
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int
    ) -> Rollout:
        """`num_generations` completions of each prompt. Raises ValueError for no prompts, an empty
        one, or more tokens than the model has positions.
        """
        begin = time.perf_counter()
        if not len(prompts):
            raise ValueError(
                "there are no prompts: the prompt set is empty or everything was filtered out"
            )
        longest, limit = max(map(len, prompts)), self.model.config.max_position_embeddings
        if not min(map(len, prompts)):
            raise ValueError(
                f"prompt {min(range(len(prompts)), key=lambda i: len(prompts[i]))} has no token"
            )
        if longest + sampling.max_completion_length > limit:
            raise ValueError(
                f"{longest} tokens of prompt and {sampling.max_completion_length} new ones are "
                f"more than the {limit} positions"
            )
        num_generations, budget = sampling.num_generations, sampling.max_completion_length
        num_rows = len(prompts) * num_generations
        noise = torch.rand(num_rows, budget, generator=torch.Generator().manual_seed(seed)).clamp_(
            max=1 - 2**-22
        )
        # Prompts of similar length are decoded together, so that little is padded.
        order = sorted(
            range(num_rows), key=lambda row: (-len(prompts[row // num_generations]), row)
        )
        tokens = torch.full((budget, num_rows), self.pad_token_id)
        log_probs = torch.zeros(budget, num_rows)
        with self._on_device():
            for start in range(0, num_rows, self.max_rows):
                rows = order[start : start + self.max_rows]
                self._decode(
                    [prompts[row // num_generations] for row in rows],
                    rows,
                    noise,
                    sampling,
                    tokens,
                    log_probs,
                )
        tokens, log_probs = tokens.T, log_probs.T  # [budget, N] -> [N, budget]
        ends = torch.isin(tokens, torch.tensor(self.eos_token_ids))  # [N, budget]
        mask = ends.cumsum(dim=1) - ends.long() == 0
        width = int(mask.sum(dim=1).max())
        # [N, budget] -> [N, T], T the longest completion
        mask, tokens, log_probs = mask[:, :width], tokens[:, :width], log_probs[:, :width]
        finish: list[Finish] = ["eos" if ended else "length" for ended in ends.any(dim=1).tolist()]
        return Rollout(
            [list(prompts[row // num_generations]) for row in range(num_rows)],
            tokens.masked_fill(~mask, self.pad_token_id),
            mask.contiguous(),
            log_probs.masked_fill(~mask, 0.0),
            finish,
            num_generations,
            self.version,
            time.perf_counter() - begin,
        )

    # ---------------------------------------------------------------------------------------------
    # one batch of rows

    def _decode(
        self,
        prompts: list[Sequence[int]],
        rows: list[int],
        noise: Tensor,
        sampling: SamplingSettings,
        tokens: Tensor,
        log_probs: Tensor,
    ) -> None:
        """Complete `prompts`, which are the rows `rows` of the rollout, and write the results into
        these columns of tokens and log_probs [budget, N].
        """
        budget = sampling.max_completion_length
        logits, prompt_of, prompt_padding, prefilled = self._prefill(prompts)
        batch = self._batch(len(rows), sampling)
        self._fill(prefilled, prompt_of)
        batch.padding.copy_(prompt_padding[prompt_of])
        batch.uniform[:budget].copy_(noise[rows].T)
        batch.ended.zero_()
        batch.num_drawn.zero_()
        self._set_length(batch, prefilled.length)
        del prefilled
        columns = torch.tensor(rows)
        self._step.record(batch, logits[prompt_of])
        done, written = 1, 0  # tokens per row, drawn and copied to the host
        while done < budget:
            if done % self.check_every == 0:
                alive = (~batch.ended).nonzero()[:, 0]
                if not len(alive):
                    break
                fewer_rows = self._fewer_rows(len(alive), batch.rows)
                if fewer_rows is not None:
                    self._write(batch, columns, written, done, tokens, log_probs)
                    batch, columns = self._compact(batch, columns, alive, fewer_rows, sampling)
                    written = done
            self._step.advance(batch)
            done += 1
        self._write(batch, columns, written, done, tokens, log_probs)

    def _prefill(self, prompts: list[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor, FullCache]:
        """Each different prompt once: last logits [U, V], the prompt of each row [B], padding int32
        [U], and the cache.
        """
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
        """Copy the prompts' keys and values into the ring's rows."""
        assert self._ring is not None
        end, slots, rows = prefilled.length, self._ring.num_slots, len(prompt_of)
        positions = torch.arange(max(0, end - slots), end, device=self.device)
        for ring, full in (
            (self._ring.keys, prefilled.keys),
            (self._ring.values, prefilled.values),
        ):
            for target, source in zip(
                ring, full, strict=True
            ):  # layers: [B, H, slots, D], [U, H, T, D]
                if end <= slots:
                    target[:rows, :, :end] = source[prompt_of]
                else:
                    target[:rows, :, positions % slots] = source[:, :, positions][prompt_of]

    def _batch(self, rows: int, sampling: SamplingSettings) -> Batch:
        """Buffers for `rows` rows; those of a graph are reused between calls."""
        if self._ring is None or self._ring.keys.shape[1] < rows:
            self._batches.clear()  # their graphs write into the old ring
            self._ring = None
            self._ring = RollingCache(self.model.config, rows, dtype=self.dtype, device=self.device)
        batch = self._batches.get((rows, sampling.top_p))
        if batch is None or len(batch.uniform) < sampling.max_completion_length:
            batch = self._step.batch(
                self._ring, rows, sampling.max_completion_length, sampling.top_p
            )
            if self.graph:
                self._batches[rows, sampling.top_p] = batch
        batch.temperature.fill_(sampling.temperature)
        return batch

    def _set_length(self, batch: Batch, length: int) -> None:
        batch.cache.length = length
        batch.length.fill_(length)

    def _fewer_rows(self, alive: int, rows: int) -> int | None:
        """Number of rows to continue with, None to leave the batch as it is. Each number of rows
        needs a graph of its own, so on a GPU rows are only halved.
        """
        if not self.graph:
            return alive if alive <= 0.75 * rows else None
        half = rows // 2
        return half if half >= 32 and alive <= half else None

    def _compact(
        self, batch: Batch, columns: Tensor, alive: Tensor, rows: int, sampling: SamplingSettings
    ) -> tuple[Batch, Tensor]:
        """The rows `alive`, filled up to `rows` with ended ones, and the rollout's row of each."""
        assert self._ring is not None
        selected = torch.cat((alive, batch.ended.nonzero()[: rows - len(alive), 0]))
        smaller = self._batch(rows, sampling)
        held = min(batch.cache.length, batch.cache.num_slots)
        for ring in (self._ring.keys, self._ring.values):
            for layer in ring:
                layer[:rows, :, :held] = layer[:, :, :held][selected]
        for name in ("token", "ended", "padding"):
            getattr(smaller, name).copy_(getattr(batch, name)[selected])
        smaller.uniform[: sampling.max_completion_length] = batch.uniform[
            : sampling.max_completion_length, selected
        ]
        smaller.num_drawn.copy_(batch.num_drawn)
        self._set_length(smaller, batch.cache.length)
        return smaller, columns[selected.cpu()]

    def _write(
        self, batch: Batch, columns: Tensor, first: int, end: int, tokens: Tensor, log_probs: Tensor
    ) -> None:
        """Copy tokens first .. end - 1 of each row to the host."""
        tokens[first:end, columns] = batch.tokens[first:end].cpu()
        log_probs[first:end, columns] = batch.log_probs[first:end].cpu()


def engine_options(decoding: Decoding) -> dict[str, bool]:
    """A `RingEngine`'s options by name: `graph`, what a GPU does by default; `kernels`, the same
    launched one by one; `plain`, PyTorch's attention. On the CPU all are plain. Raises ValueError
    for another name.
    """
    known: dict[str, dict[str, bool]] = {
        "graph": {},
        "kernels": {"graph": False},
        "plain": {"graph": False, "kernels": False},
    }
    if decoding not in known:
        raise ValueError(f"unknown decoding {decoding!r}: available are {', '.join(known)}")
    return known[decoding]


def rows_that_fit(memory: int, row_bytes: int) -> int:
    """Rows of a ring of `memory` bytes, from 1 to MAX_ROWS; a multiple of 32 above 32."""
    rows = min(MAX_ROWS, memory // row_bytes)
    return max(1, rows if rows < 32 else rows // 32 * 32)
