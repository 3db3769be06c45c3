r"""Is this answer the gold answer? A verdict with a reason, in bounded time and memory, from any
thread.

    completion -> extract -> normalise -> compare as text and as exact numbers -> screen -> worker:
    parser and SymPy
                 extraction  answers      answers (microseconds, here)            bombs     verifier_worker (killable)

    with Verifier() as verifier:
        verifier.verify(r"... so \boxed{\frac{2}{4}}", gold=r"\frac12")    # Verdict(reason="correct", by="number", ...)
        verifier.verify_batch(completions, golds)                          # in order, several workers at once
        await verifier.verify_async(completion, gold)

Guarantees: one of six reasons for every pair of strings; no signals, so any thread, event loop or
notebook will do; an answer that needs SymPy is decided within `timeout` seconds of reaching a
worker, whose process is killed otherwise; a worker holds at most `memory_bytes`, decides one answer
at a time, and its death costs no other answer; equal inputs give equal verdicts within one verifier
(cached, refusals and timeouts too); no process is left when the verifier or the interpreter ends,
however it ends.
Does not: judge reasoning, read several boxes as one answer, ask a model, or promise that a timeout
repeats on a faster machine.
"""

import asyncio
import json
import os
import queue
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from moxin_lab.verifier import normalise
from moxin_lab.verifier.extraction import Extracted, How, extract
from moxin_lab.verifier.pool import Worker, give_back, lend
from moxin_lab.verifier.screen import Limits, screen

Reason = Literal["correct", "wrong", "no_answer", "unparsable", "refused_bomb", "timeout"]
REASONS: tuple[Reason, ...] = (
    "correct",
    "wrong",
    "no_answer",
    "unparsable",
    "refused_bomb",
    "timeout",
)


@dataclass(frozen=True)
class Verdict:
    """reason: one of `REASONS`. by: the step that decided. answer: what was extracted, cut at 200
    characters.
    """

    reason: Reason
    by: Literal["extraction", "string", "number", "screen", "symbol"]
    answer: str | None = None
    how: How | None = None  # the rule that found the answer
    detail: str = ""

    @property
    def correct(self) -> bool:
        return self.reason == "correct"

    @property
    def reward(self) -> float:
        """1.0 for a correct answer, 0.0 for everything else."""
        return float(self.correct)


@dataclass(frozen=True)
class _Question:
    """What has to go to a worker: normalised texts, and what the verdict will say of them."""

    gold: str
    answer: str
    found: Extracted


class VerifierClosed(RuntimeError):
    """The verifier was used after `close`."""


class Verifier:
    """Verdicts on answers.

    workers: processes that may run SymPy at the same time (default: the cores, at most 8).
    timeout: seconds of wall clock for one answer in a worker. memory_bytes: address space of a
    worker.
    limits: what the screen lets through to a worker. cache_size: verdicts kept.
    lazy: start the processes with the first answer that needs one, not now. Starting takes two to
    five seconds once.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        timeout: float = 0.8,
        memory_bytes: int = 1 << 30,
        limits: Limits | None = None,
        cache_size: int = 65_536,
        lazy: bool = False,
    ):
        self.workers = min(os.cpu_count() or 1, 8) if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"workers is {workers}; give 1 or more")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout} seconds; give more than 0")
        if memory_bytes < 128 << 20:
            raise ValueError(
                f"memory_bytes is {memory_bytes:,}; SymPy alone takes 90 MB of address space, give 128 MiB or more"
            )
        if cache_size < 1:
            raise ValueError(f"cache_size is {cache_size}; give 1 or more")
        self.timeout, self.memory_bytes, self.cache_size = timeout, memory_bytes, cache_size
        self.limits = limits or Limits()
        self._closed = False
        self._reset()
        if not lazy:
            self.start()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._live: set[Worker] = set()
        self._finalizer = weakref.finalize(self, _end, id(self), self._live)
        self._slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._slots.put(None)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="verifier")

    def start(self) -> Self:
        """Start the processes and wait until every worker answers."""
        slots = [self._slots.get() for _ in range(self.workers)]
        try:
            slots = [worker or self._new_worker() for worker in slots]
        finally:
            for worker in slots:
                self._slots.put(worker)
        return self

    # ------------------------------------------------------------------------------------------------------
    # verdicts

    def verify(self, completion: str, gold: str) -> Verdict:
        r"""The verdict on the final answer of a completion (or on a bare answer). gold: an answer,
        or a text with one in a box.

        Raises TypeError for what is not a string, ValueError for an empty gold.
        """
        return self.verify_batch([completion], [gold])[0]

    def verify_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts in the order of the completions. Equal pairs are decided once. Raises as
        `verify`, naming the position.
        """
        if isinstance(completions, str) or isinstance(golds, str):
            raise TypeError("verify_batch takes sequences of strings; for one answer call verify")
        if len(completions) != len(golds):
            raise ValueError(
                f"{len(completions)} completions but {len(golds)} golds: give one gold for each completion"
            )
        for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
            _check(completion, gold, i if len(golds) > 1 else None)
        self._check_usable()
        verdicts: list[Verdict | None] = [None] * len(golds)
        waiting: dict[tuple[str, str], list[int]] = {}
        questions: dict[tuple[str, str], _Question] = {}
        for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
            same = (
                completion.strip() == gold.strip()
            )  # such as `all real numbers`, which reads as a sentence without answer
            found = Extracted(gold.strip(), "bare") if same else extract(completion)
            if found is None:
                verdicts[i] = self._count(
                    Verdict(
                        "no_answer", "extraction", detail="no box, tag, expression or number in it"
                    )
                )
                continue
            pair = (gold, found.text)
            known = self._cached(pair)
            if known is None and pair not in waiting:
                decided = self._decide_here(gold, found)
                if isinstance(decided, Verdict):
                    known = self._remember(pair, decided)
                else:
                    questions[pair] = decided
            if known is not None:
                verdicts[i] = self._count(known)
            else:
                waiting.setdefault(pair, []).append(i)
        decisions = (
            self._threads.map(self._ask, questions.values())
            if len(questions) > 1
            else map(self._ask, questions.values())
        )
        for pair, decision in zip(questions, decisions, strict=True):
            self._remember(pair, decision)
            for i in waiting[pair]:
                verdicts[i] = self._count(decision)
        return [verdict for verdict in verdicts if verdict is not None]

    async def verify_async(self, completion: str, gold: str) -> Verdict:
        """`verify` without blocking the event loop."""
        return await asyncio.to_thread(self.verify, completion, gold)

    async def verify_batch_async(
        self, completions: Sequence[str], golds: Sequence[str]
    ) -> list[Verdict]:
        """`verify_batch` without blocking the event loop."""
        return await asyncio.to_thread(self.verify_batch, completions, golds)

    def counts(self) -> dict[str, int]:
        """How many verdicts of each reason were given so far, and `cached`, `workers_killed`."""
        with self._lock:
            return {name: self._counts[name] for name in (*REASONS, "cached", "workers_killed")}

    def _decide_here(self, gold: str, found: Extracted) -> Verdict | _Question:
        def verdict(
            reason: Reason, by: Literal["string", "number", "screen"], detail: str
        ) -> Verdict:
            return _verdict(found, reason, by, detail)

        boxed = extract(gold) if "boxed" in gold else None
        gold = boxed.text if boxed is not None else gold.strip()
        if found.text == gold:
            return verdict("correct", "string", "the same text")
        for name, text in (("answer", found.text), ("gold", gold)):
            if len(text) > 2 * self.limits.length:
                return verdict("refused_bomb", "screen", f"the {name} has {len(text):,} characters")
        question = _Question(normalise.normalise(gold), normalise.normalise(found.text), found)
        if not question.answer:
            return verdict(
                "unparsable", "string", "nothing is left of it but spacing and punctuation"
            )
        decided = normalise.compare(question.gold, question.answer)
        if decided is not None:
            equal, by = decided
            return verdict(
                "correct" if equal else "wrong",
                by,
                f"{'the same' if equal else 'another'} {by} after normalisation",
            )
        for name, text in (("answer", question.answer), ("gold", question.gold)):
            refusal = screen(text, self.limits)
            if refusal is not None:
                return verdict("refused_bomb", "screen", f"the {name}: {refusal}")
        return question

    # -------------------------------------------------------------------------------------------------------
    # workers

    def _ask(self, question: _Question) -> Verdict:
        asked = {
            "gold": question.gold,
            "answer": question.answer,
            "seconds": self.timeout,
            "limits": asdict(self.limits),
        }
        job = json.dumps(asked).encode() + b"\n"
        left = self.timeout
        for _attempt in range(
            2
        ):  # a worker that was killed from outside, or died of the answer: once more in another
            worker = self._slots.get()
            started = time.monotonic()
            try:
                worker = worker or self._new_worker()
                started = time.monotonic()  # a start is not the answer's fault
                reply = worker.ask(job, started + left)
            except TimeoutError:
                self._kill(worker)
                worker = None
                return _verdict(
                    question.found, "timeout", "symbol", f"SymPy took more than {self.timeout} s"
                )
            except (ConnectionError, json.JSONDecodeError):
                self._kill(worker)
                worker = None
                self._check_usable()
                left = max(0.05, left - (time.monotonic() - started))
                continue
            except BaseException:  # an interrupt: the reply would be taken for the next question's
                self._kill(worker)
                worker = None
                raise
            finally:
                if worker is not None and worker.spent:
                    self._retire(worker)
                    worker = None
                self._slots.put(worker)
            return _verdict(question.found, reply["reason"], "symbol", reply["detail"])
        return _verdict(
            question.found, "refused_bomb", "symbol", "it ended the worker process twice"
        )

    def _new_worker(self) -> Worker:
        for _attempt in range(2):
            self._check_usable()
            try:
                worker = lend(id(self)).worker(self.memory_bytes)
            except ConnectionError:  # the nursery was killed between two questions
                continue
            with self._lock:
                self._live.add(worker)
            return worker
        raise RuntimeError(
            "the verifier's process was started twice and ended twice: is something killing it?"
        )

    def _kill(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.kill()
            self._retire(worker)
            with self._lock:
                self._counts["workers_killed"] += 1

    def _retire(self, worker: Worker) -> None:
        worker.wire.close()
        with self._lock:
            self._live.discard(worker)

    # ---------------------------------------------------------------------------------------------------------
    # state

    def _check_usable(self) -> None:
        if self._closed:
            raise VerifierClosed("this verifier is closed; make another")
        if (
            self._owner != os.getpid()
        ):  # in a fork: sockets and threads belong to the process that made the verifier
            self._reset()

    def _cached(self, pair: tuple[str, str]) -> Verdict | None:
        with self._lock:
            verdict = self._cache.get(pair)
            if verdict is None:
                return None
            self._cache.move_to_end(pair)
            self._counts["cached"] += 1
            return verdict

    def _remember(self, pair: tuple[str, str], verdict: Verdict) -> Verdict:
        with self._lock:
            self._cache[pair] = verdict
            while len(self._cache) > self.cache_size:
                self._cache.popitem(last=False)
        return verdict

    def _count(self, verdict: Verdict) -> Verdict:
        with self._lock:
            self._counts[verdict.reason] += 1
        return verdict

    def close(self) -> None:
        """End the processes; questions that wait in other threads raise VerifierClosed. Closing
        twice is closing once.
        """
        self._closed = True
        self._finalizer()
        if self._owner == os.getpid():
            self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(user: int, live: set[Worker]) -> None:
    """What is left to do when a verifier is closed, collected, or met by the interpreter's end."""
    for worker in list(live):
        worker.kill()
    give_back(user)


def _check(completion: Any, gold: Any, position: int | None) -> None:
    where = "" if position is None else f"[{position}]"
    if not isinstance(completion, str):
        raise TypeError(
            f"completion{where} is {type(completion).__name__}, not a string: pass the decoded text"
        )
    if not isinstance(gold, str):
        raise TypeError(
            f"gold{where} is {type(gold).__name__} ({str(gold)[:40]}), not a string: pass str(gold)"
        )
    if not gold.strip():
        raise ValueError(
            f"gold{where} is empty: every completion would be wrong; drop this example"
        )


def _verdict(found: Extracted, reason: Reason, by: Any, detail: str) -> Verdict:
    return Verdict(reason, by, found.text[:200], found.how, detail)
