"""Continuous batching: requests join and leave a running batch between two tokens.

    scheduler = Scheduler(model, max_context=2048)
    scheduler.start()
    scheduler.submit([job])         # from any thread; raises Busy or Stopped
    scheduler.cancel(job)           # its row is free before the next token
    scheduler.stop()

    waiting -> prefill, a chunk between two steps -> a row of the ring -> one token a step -> done

One thread owns the model. Each round reads at most one chunk of one prompt, then gives every row
one token more. What happened goes to `deliver` once per round, as (job, Event) pairs.

On a GPU a step is a CUDA graph for the next larger number of rows (1, 2, 4, ...), and its tokens
are read while the following step runs, so the host never holds the device up: a row that has ended
costs one token that nobody sees.

Guarantees: a job's tokens are those that it would get alone, up to rounding of matrix products of
other sizes; a sampled job depends on its seed only; a job that fails, is cancelled or runs out of
time frees its row and harms no other (tests/serving/test_scheduler.py).
Out of scope: text and stop strings (the `accept` of a job decides), HTTP (`server.py`).
"""

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moxin_lab.model import decode
from moxin_lab.model.cache import RollingCache
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.serving import picking
from moxin_lab.serving.jobs import Busy, Event, Job, Stopped, TokenScore
from moxin_lab.serving.ring import SharedRing

LOG = logging.getLogger(__name__)
LOGITS_CHUNK = 256
"""Positions of a prompt whose logits are held at once, where log-probabilities are asked for."""


@dataclass
class _InFlight:
    """A step whose tokens the host has not read yet: [R] ids, [R] log-probabilities, [R, k]."""

    jobs: list[Job | None]
    values: Tensor
    top: tuple[Tensor, Tensor] | None
    event: Any


Deliver = Callable[[list[tuple[Job, Event]]], None]


class Scheduler:
    """See the module's docstring.

    max_context: most tokens of a prompt and its completion. max_rows: completions at once.
    max_waiting: jobs that may wait beside the max_rows at work; a job that has just come and whose
    row is free does not wait. prefill_chunk: tokens of a prompt read between two steps.
    kernels: decoding kernels in CUDA graphs (default: where they run on a GPU). lag: steps that run
    before the host reads the tokens of one (default: 1 on a GPU, else 0).
    Raises ValueError for a context beyond the model's positions.
    """

    def __init__(
        self,
        model: MoxinForCausalLM,
        *,
        deliver: Deliver,
        max_context: int,
        max_rows: int = 16,
        max_waiting: int = 256,
        prefill_chunk: int | None = None,
        kernels: bool | None = None,
        lag: int | None = None,
    ) -> None:
        limit = model.config.max_position_embeddings
        if not 1 <= max_context <= limit or min(max_rows, max_waiting, prefill_chunk or 1) < 1:
            raise ValueError(
                f"max_context {max_context} must be 1 to {limit}, the model's positions; "
                f"max_rows {max_rows}, max_waiting {max_waiting} and prefill_chunk "
                f"{prefill_chunk} at least 1"
            )
        self.model, self.deliver = model, deliver
        self.max_context, self.max_rows, self.max_waiting = max_context, max_rows, max_waiting
        weight = model.lm_head.weight
        self.device = weight.device
        on_gpu = self.device.type == "cuda"
        self.prefill_chunk = prefill_chunk or (512 if on_gpu else 256)
        refused = decode.unsupported_reason(model, self.device)
        self.kernels = (on_gpu and refused is None) if kernels is None else kernels
        if self.kernels and refused is not None:
            raise ValueError(f"the decoding kernels cannot run: {refused}")
        self._lag = int(on_gpu) if lag is None else lag
        config = dataclasses.replace(model.config, max_position_embeddings=max_context)
        options: dict[str, Any] = {"dtype": weight.dtype, "device": self.device}
        self._prompt = RollingCache(config, 1, **options)
        slots = self._prompt.num_slots
        self.ring = SharedRing(config, max_rows, num_slots=slots, **options)
        self._views: dict[int, tuple[SharedRing, Any]] = {}
        self._token = torch.zeros(max_rows, dtype=torch.int64, device=self.device)
        self._rows: list[Job | None] = [None] * max_rows
        self._waiting: deque[Job] = deque()
        self._unfinished = 0  # jobs that were taken and have not had their last event
        self._reading: Job | None = None
        self._in_flight: deque[_InFlight] = deque()
        self._events: list[tuple[Job, Event]] = []
        self._wake = threading.Condition()
        self._cancelled: list[Job] = []
        self._stopping = False
        self.failure: str | None = None
        self._thread: threading.Thread | None = None
        self.counts = {"prompt_tokens": 0, "completion_tokens": 0, "steps": 0, "row_steps": 0}

    # ---------------------------------------------------------------------------------------------
    # from other threads

    def start(self) -> None:
        """Begin to work, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="moxin-scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End: jobs at work get a last event, the thread ends. Returns when it has."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all or none. Raises Busy if they do not fit the queue, Stopped if nothing is
        taken any more.
        """
        for job in jobs:
            if not job.prompt_ids or len(job.prompt_ids) + job.max_tokens > self.max_context:
                raise ValueError(
                    f"{len(job.prompt_ids)} tokens of prompt and {job.max_tokens} new ones: there "
                    f"must be one at least, and {self.max_context} at most"
                )
        with self._wake:
            if self._stopping or self.failure is not None:
                raise Stopped(self.failure or "the server is stopping")
            # Counted by what was taken, not by the length of the queue: whether this thread or the
            # scheduler's came first must not decide who is refused.
            if self._unfinished + len(jobs) > self.max_rows + self.max_waiting:
                raise Busy(
                    f"{self._unfinished} requests are at work or wait, {self.max_rows} may be at "
                    f"work and {self.max_waiting} may wait: try again later"
                )
            self._unfinished += len(jobs)
            self._waiting.extend(jobs)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """End a job before its time; it gets a last event unless it already has."""
        with self._wake:
            self._cancelled.append(job)
            self._wake.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Jobs in rows or being read, and jobs waiting."""
        running = sum(job is not None for job in self._rows) + (self._reading is not None)
        return running, len(self._waiting)

    # ---------------------------------------------------------------------------------------------
    # the scheduler's thread

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._next_round():
                self._read_prompt()
                self._step()
                self._flush()
        except Exception as error:
            LOG.exception("the scheduler failed")
            self.failure = f"{type(error).__name__}: {error}"
        reason = self.failure or "the server is stopping"
        with self._wake:
            self._stopping = True
            # A job whose last token is in flight has no row any more.
            in_flight = [job for step in self._in_flight for job in step.jobs]
            jobs = [self._reading, *self._rows, *self._waiting, *in_flight]
            self._waiting.clear()
        for job in jobs:
            if job is not None:
                self._end(job, "error", error=reason)
        self._flush()

    def _next_round(self) -> bool:
        """Wait for something to do and drop what was cancelled; False to end."""
        with self._wake:
            while not (self._stopping or self._cancelled or self._has_work()):
                self._wake.wait()
            if self._stopping:
                return False
            cancelled, self._cancelled = self._cancelled, []
            alive = [self._reading, *self._rows, *self._waiting]
        for job in cancelled:
            self._end(job, "cancelled")
        now = time.monotonic()
        for late in alive:
            if late is not None and now > late.deadline:
                self._end(late, "timeout")
        with self._wake:
            self._waiting = deque(job for job in self._waiting if not job.done)
        return True

    def _has_work(self) -> bool:
        return bool(
            self._waiting
            or self._reading is not None
            or self._in_flight
            or any(job is not None for job in self._rows)
        )

    def _flush(self) -> None:
        events, self._events = self._events, []
        if events:
            self.deliver(events)

    def _tell(self, job: Job, event: Event) -> None:
        self._events.append((job, event))

    def _end(self, job: Job, finish: str, *, error: str = "", **values: Any) -> None:
        """Give a job its last event and free what it holds."""
        if job.done:
            return
        job.done = True
        with self._wake:
            self._unfinished -= 1
        self._leave(job)
        job.embeddings = None
        text = "" if finish in ("cancelled", "error") else job.finish()
        self._tell(job, Event(values.pop("text", "") + text, finish=finish, error=error, **values))

    def _leave(self, job: Job) -> None:
        """Free a job's row."""
        if self._reading is job:
            self._reading = None
        if job.row is None:
            return
        row, job.row = job.row, None
        self._rows[row] = None
        self.ring.release(row)

    # Prompts.

    def _read_prompt(self) -> None:
        """Read the next chunk of a prompt; at its end the job gets its first token and a row."""
        job = self._reading or self._next_job()
        if job is None:
            return
        try:
            self._read_chunk(job)
        except (RuntimeError, ValueError) as error:  # out of memory, an image that does not fit
            LOG.exception("a prompt could not be read")
            self._end(job, "error", error=f"{type(error).__name__}: {error}")

    def _next_job(self) -> Job | None:
        with self._wake:
            if not self._waiting:
                return None
            if self._waiting[0].max_tokens > 1 and all(job is not None for job in self._rows):
                return None
            job = self._reading = self._waiting.popleft()
        self._prompt.length = 0
        return job

    def _read_chunk(self, job: Job) -> None:
        if job.embeddings is None:
            if job.embed is not None:
                job.embeddings = job.embed()
            else:
                ids = torch.tensor([list(job.prompt_ids)], device=self.device)
                job.embeddings = self.model.model.embed_tokens(ids)
            if job.embeddings.shape[1] != len(job.prompt_ids):
                raise ValueError(
                    f"{job.embeddings.shape[1]} embeddings for {len(job.prompt_ids)} tokens"
                )
            job.random = np.random.default_rng(job.seed)
        # Nobody waits for a step while no row is at work.
        idle = all(other is None for other in self._rows)
        size = 16 * self.prefill_chunk if idle else self.prefill_chunk
        chunk = job.embeddings[:, job.read : job.read + size]
        states = self.model.hidden_states_from_embeddings(chunk, cache=self._prompt)[0]  # [T, C]
        if job.pool:
            total = states.float().sum(dim=0)
            job.pooled = total if job.pooled is None else job.pooled + total
        if job.prompt_logprobs is not None:
            self._score_prompt(job, states)
        job.read += chunk.shape[1]
        if job.read == len(job.prompt_ids):
            self.counts["prompt_tokens"] += job.read
            self._begin_answer(job, states[-1:])

    def _score_prompt(self, job: Job, states: Tensor) -> None:
        """Add the scores of the tokens that states [T, C] of a chunk predict."""
        ids = job.prompt_ids
        if not job.scores:
            job.scores.append(TokenScore(ids[0], None))
        targets = list(ids[job.read + 1 : job.read + 1 + len(states)])
        assert job.prompt_logprobs is not None
        for start in range(0, len(targets), LOGITS_CHUNK):
            part = targets[start : start + LOGITS_CHUNK]
            logits = self.model.lm_head(states[start : start + len(part)]).float()
            log_probs = logits.log_softmax(dim=-1)  # [t, V]
            # The placeholder of a patch need not be in the vocabulary, and has no probability.
            is_patch = [token_id in job.patch_ids for token_id in part]
            places = [
                0 if skip else token_id for token_id, skip in zip(part, is_patch, strict=True)
            ]
            chosen = log_probs.gather(1, torch.tensor(places, device=self.device)[:, None])[:, 0]
            top = picking.likeliest(log_probs, job.prompt_logprobs)
            for place, (token_id, value) in enumerate(zip(part, chosen.tolist(), strict=True)):
                score = (
                    TokenScore(token_id, None)
                    if is_patch[place]
                    else TokenScore(token_id, value, picking.pairs(top, place))
                )
                job.scores.append(score)

    def _begin_answer(self, job: Job, state: Tensor) -> None:
        """The prompt is read: its scores or embedding, the first token from its last state [1, C],
        and a row for the others.
        """
        job.embeddings = None
        self._reading = None
        scores = tuple(job.scores) if job.prompt_logprobs is not None else None
        if job.pool:
            assert job.pooled is not None
            mean = (job.pooled / job.read).cpu()
            self._end(job, "stop", embedding=mean)
            return
        if scores is not None:
            self._tell(job, Event(prompt_scores=scores))
        if job.max_tokens == 0:
            self._end(job, "length")
            return
        row = None
        if job.max_tokens > 1:
            row = next(place for place, other in enumerate(self._rows) if other is None)
            self.ring.admit(row, self._prompt)
            self._rows[row], job.row = job, row
        token = self._choose(self.model.lm_head(state), [job])
        if row is not None:
            self._token[row] = token[0]

    # Steps.

    def _step(self) -> None:
        """One token more for each row, then the tokens of earlier steps."""
        rows = self._compact()
        if rows:
            view, step = self._view(rows)
            view.follow(self.ring)
            token = self._token[:rows]
            logits = step(token)
            self.ring.advance()
            self.counts["steps"] += 1
            self.counts["row_steps"] += rows
            token.copy_(self._choose(logits, self._rows[:rows]))
        while len(self._in_flight) > (self._lag if rows else 0):
            self._read_tokens(self._in_flight.popleft())

    def _compact(self) -> int:
        """Close gaps where that makes the step smaller; the number of rows to run."""
        for full in [job for job in self._rows if job is not None]:
            if full.sampled >= full.max_tokens:
                self._leave(full)  # its last token is in flight
        taken = [row for row, job in enumerate(self._rows) if job is not None]
        if not taken:
            return 0
        wanted = self._rows_of_step(len(taken))
        for row in taken:
            if row < wanted:
                continue
            target = self._rows.index(None)
            job = self._rows[row]
            assert job is not None
            self.ring.move(row, target)
            self._token[target] = self._token[row]
            self._rows[target], self._rows[row], job.row = job, None, target
        return wanted

    def _rows_of_step(self, count: int) -> int:
        """How many rows run so that `count` do: each number has a graph of its own, so with graphs
        only powers of two.
        """
        return min(1 << (count - 1).bit_length(), self.max_rows) if self.kernels else count

    def _view(self, rows: int) -> tuple[SharedRing, Callable[[Tensor], Tensor]]:
        """The first rows of the ring, and the step over them: ids int64 [R] to logits [R, V]."""
        if rows not in self._views:
            view = self.ring.first(rows)
            if self.kernels:
                step: Any = decode.DecodeStep(self.model, view)
            else:

                def step(token: Tensor) -> Tensor:
                    return self.model(token[:, None], cache=view)[:, -1]

            self._views[rows] = view, step
        return self._views[rows]

    def _choose(self, logits: Tensor, jobs: Sequence[Job | None]) -> Tensor:
        """Draw the next token of each job from logits [R, V], int64 [R], and put it in flight."""
        token, log_prob, top = picking.pick(logits, jobs)
        values = torch.stack((token.double(), log_prob.double()))  # [2, R]
        event = None
        if self.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            top = None if top is None else tuple(t.to("cpu", non_blocking=True) for t in top)
            event = torch.cuda.Event()
            event.record()
        for job in jobs:
            if job is not None:
                job.sampled += 1
        self._in_flight.append(_InFlight(list(jobs), values, top, event))
        return token

    def _read_tokens(self, step: _InFlight) -> None:
        """Hand the tokens of a step to their jobs, and end those that have come to their end."""
        if step.event is not None:
            step.event.synchronize()
        token_ids, log_probs = step.values.tolist()
        for place, job in enumerate(step.jobs):
            if job is None or job.done:
                continue
            token_id, log_prob = int(token_ids[place]), log_probs[place]
            if not np.isfinite(log_prob):
                if job.row is not None:
                    self.ring.clear(job.row)
                self._end(job, "error", error="the model's logits are not finite")
                continue
            top = () if not job.logprobs else picking.pairs(step.top, place)[: job.logprobs]
            self._hand_over(job, token_id, TokenScore(token_id, log_prob, top))

    def _hand_over(self, job: Job, token_id: int, score: TokenScore) -> None:
        self.counts["completion_tokens"] += 1
        job.read += 1
        reported = None if job.logprobs is None else score
        if token_id in job.end_ids:
            self._end(job, "stop", score=reported)
            return
        text, stopped = job.accept(token_id)
        last = job.read - len(job.prompt_ids) >= job.max_tokens
        if stopped:
            self._end(job, "stop", score=reported, text=text)
        elif last:
            self._end(job, "length", score=reported, text=text)
        else:
            self._tell(job, Event(text, score=reported))
