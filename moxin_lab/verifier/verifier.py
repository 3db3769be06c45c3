r"""Is this answer the gold answer? A verdict with a reason, in bounded time and memory, from any
thread.

    completion -> extract -> normalise -> read -> compare by text and exact rationals
               -> screen -> worker: compare by numbers of 150 digits, Math-Verify's parser

    with Verifier() as verifier:
        verifier.verify(r"... so \boxed{\frac{2}{4}}", gold=r"\frac12")
        # Verdict(reason="correct", by="number", type="number", rule="exactly equal; ...")
        verifier.verify_batch(completions, golds)    # in order, several workers at once
        await verifier.verify_async(completion, gold)

Guarantees: one of seven reasons for every pair of strings, with the type of the answer and the rule
that decided; no signals, so any thread, event loop or notebook will do; a worker is ended after
`timeout` seconds of its own CPU time for one answer, so that a verdict does not depend on the load;
a worker holds at most `memory_bytes`, decides one answer at a time, and its death costs no other
answer; equal inputs give equal verdicts within one verifier (cached, except `undecided`); no
process is left when the verifier or the interpreter ends, however it ends. Out of scope: judging
reasoning, several boxes as one answer, asking a model.
"""

import asyncio
import json
import os
import queue
import re
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Literal, Self

from moxin_lab.verifier.compare import RULES, compare, kind
from moxin_lab.verifier.exact import NeedsWorker
from moxin_lab.verifier.extraction import Extracted, How, extract
from moxin_lab.verifier.normalise import normalise
from moxin_lab.verifier.pool import CPUTimeExceeded, Unanswered, Worker, acquire, release
from moxin_lab.verifier.reading import read
from moxin_lab.verifier.screen import Limits, screen

Reason = Literal[
    "correct", "wrong", "no_answer", "unparsable", "refused_bomb", "timeout", "undecided"
]
By = Literal["extraction", "string", "number", "screen", "symbol"]
REASONS: tuple[Reason, ...] = (
    "correct",
    "wrong",
    "no_answer",
    "unparsable",
    "refused_bomb",
    "timeout",
    "undecided",
)
BACKSTOP = 12.0  # seconds on the clock for each second of CPU time, before an answer is undecided


@dataclass(frozen=True)
class Verdict:
    """reason: one of `REASONS`. by: the step that decided. answer: what was extracted, cut at 200
    characters. how: the rule that found the answer. type and rule: what kind of answer the gold is
    and the comparison rule that decided, as in `compare.RULES`. cpu_seconds: of the worker.
    """

    reason: Reason
    by: By
    answer: str | None = None
    how: How | None = None
    detail: str = ""
    type: str = ""
    rule: str = ""
    cpu_seconds: float = field(default=0.0, compare=False)

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
    timeout: seconds of CPU time for one answer in a worker; `BACKSTOP` times that on the clock, at
    least five seconds, twice, before the answer is `undecided`. memory_bytes: address space of a
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
                f"memory_bytes is {memory_bytes:,}; SymPy alone takes 90 MB of address space, "
                "give 128 MiB or more"
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

    # ------------------------------------------------------------------
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
                f"{len(completions)} completions but {len(golds)} golds: "
                "give one gold for each completion"
            )
        for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
            _check(completion, gold, i if len(golds) > 1 else None)
        self._check_usable()
        verdicts: list[Verdict | None] = [None] * len(golds)
        waiting: dict[tuple[str, str], list[int]] = {}
        questions: dict[tuple[str, str], _Question] = {}
        for i, (completion, gold) in enumerate(zip(completions, golds, strict=True)):
            found = _extracted(completion, gold)
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
        boxed = _gold_answer(gold)
        if found.text == boxed:
            return _verdict(
                found, "correct", "string", "the same text", _type(boxed), "the same text"
            )
        for name, text in (("answer", found.text), ("gold", boxed)):
            if len(text) > 2 * self.limits.length:
                return _refused(found, f"the {name} has {len(text):,} characters")
        question = _Question(normalise(boxed), normalise(found.text), found)
        if not question.answer:
            detail = "nothing is left of it but spacing and punctuation"
            return _verdict(found, "unparsable", "string", detail, _type(boxed), "the same text")
        texts = {question.answer, _without_name(question.answer)} & {
            question.gold,
            _without_name(question.gold),
        }
        if any(text and not _is_undefined(text) for text in texts) and (
            question.gold in texts or question.answer in texts
        ):
            detail = "the same text after normalisation"
            return _verdict(found, "correct", "string", detail, _type(boxed), "the same text")
        for name, text in (("answer", question.answer), ("gold", question.gold)):
            if (refusal := screen(text, self.limits)) is not None:
                return _refused(found, f"the {name}: {refusal}")
        try:
            decision = compare(question.gold, question.answer, in_worker=False)
        except NeedsWorker:
            return question
        except (RecursionError, ArithmeticError, LookupError, ValueError) as error:
            detail = f"cannot be read: {type(error).__name__}"
            return _verdict(found, "unparsable", "string", detail, "unread", RULES["unread"])
        if decision.unread:
            return question
        reason: Reason = "correct" if decision.equal else "wrong"
        by: By = "string" if decision.type in ("text", "choice") else "number"
        detail = f"{decision.type}: {'the same' if decision.equal else 'not the same'}"
        return _verdict(found, reason, by, detail, decision.type, decision.rule)

    # ------------------------------------------------------------------
    # workers

    def _ask(self, question: _Question) -> Verdict:
        job = {
            "gold": question.gold,
            "answer": question.answer,
            "seconds": self.timeout,
            "limits": asdict(self.limits),
        }
        line = json.dumps(job).encode() + b"\n"
        backstop = max(5.0, BACKSTOP * self.timeout)
        deaths = late = 0
        # A worker that was killed from outside, died of the answer, or got no CPU time on a loaded
        # machine: once more in another.
        while deaths < 2 and late < 2:
            worker = self._slots.get()
            try:
                worker = worker or self._new_worker()
                reply = worker.ask(line, self.timeout, backstop)
            except CPUTimeExceeded as exceeded:
                self._kill(worker)
                worker = None
                detail = f"more than {self.timeout} s of CPU time"
                return _verdict(
                    question.found,
                    "timeout",
                    "symbol",
                    detail,
                    "unread",
                    "CPU time",
                    exceeded.seconds,
                )
            except Unanswered:
                self._kill(worker)
                worker = None
                late += 1
                continue
            except (ConnectionError, json.JSONDecodeError):
                self._kill(worker)
                worker = None
                self._check_usable()
                deaths += 1
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
            return _verdict(
                question.found,
                reply["reason"],
                "symbol",
                reply["detail"],
                reply["type"],
                reply["rule"],
                reply["cpu"],
            )
        if late:
            detail = f"no reply in {backstop:.0f} s on the clock, twice: the machine is loaded"
            return _verdict(question.found, "undecided", "symbol", detail, "unread", "wall clock")
        detail = "it ended the worker process twice"
        return _verdict(question.found, "refused_bomb", "symbol", detail, "unread", "worker death")

    def _new_worker(self) -> Worker:
        for _attempt in range(2):
            self._check_usable()
            try:
                worker = acquire(id(self)).worker(self.memory_bytes)
            except ConnectionError:  # the fork server was killed between two questions
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

    # ------------------------------------------------------------------
    # state

    def _check_usable(self) -> None:
        if self._closed:
            raise VerifierClosed("this verifier is closed; make another")
        # In a fork: sockets and threads belong to the process that made the verifier.
        if self._owner != os.getpid():
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
        if verdict.reason == "undecided":  # of this moment's load, not of the answer
            return verdict
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
    release(user)


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


def _extracted(completion: str, gold: str) -> Extracted | None:
    """The answer of a completion; of one that is the gold text itself, the gold answer."""
    if completion.strip() == gold.strip():
        # Such as `all real numbers`, which reads as a sentence without an answer.
        return Extracted(_gold_answer(gold), "bare")
    return extract(completion)


def _gold_answer(gold: str) -> str:
    """A gold answer, out of its box or tag, or behind GSM8K's mark, where it has one."""
    boxed = extract(gold) if "box" in gold or "<answer>" in gold.lower() else None
    if boxed is not None and boxed.how in ("boxed", "tagged"):
        return boxed.text
    return gold.rpartition("####")[2].strip() or gold.strip()  # GSM8K's mark


@lru_cache(maxsize=65_536)
def _type(gold: str) -> str:
    """The type of a gold answer, as `compare.RULES` names it."""
    text = normalise(gold) if len(gold) <= Limits().length else ""
    if not text or screen(text) is not None:
        return "text"
    try:
        return kind(read(text)[0])
    except (RecursionError, ArithmeticError, LookupError, ValueError):
        return "unread"


def _without_name(text: str) -> str:
    """A normalised answer without the `x =` in front of it."""
    return re.sub(r"^\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=\s*(?![=<>])", "", text)


def _is_undefined(text: str) -> bool:
    """Spellings of no value, of which two are not the same answer: 0/0."""
    return re.fullmatch(r"\\frac\{?0\}?\{?0\}?|0/0", text) is not None


def _refused(found: Extracted, detail: str) -> Verdict:
    return _verdict(found, "refused_bomb", "screen", detail, "unread", "the screen")


def _verdict(
    found: Extracted,
    reason: Reason,
    by: By,
    detail: str,
    type_: str,
    rule: str,
    cpu_seconds: float = 0.0,
) -> Verdict:
    return Verdict(reason, by, found.text[:200], found.how, detail, type_, rule, cpu_seconds)
