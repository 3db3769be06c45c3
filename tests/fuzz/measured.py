"""What the campaigns share: changes of bytes and of values, and a child process whose every call
is measured.

A campaign is a function (count, seed, folder) that yields one call at a time, the same ones for the
same seed. It runs in a process of its own, so that its peak memory is its own and a decoder that
crashes is a fault of that call. The process is forked where that is safe (Linux), since it takes
seconds to import torch again. `shards.py` runs a campaign in several processes.
"""

import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SECONDS, BYTES = 2.0, 2**30
"""Limits of one call: processor time, and memory above that of the process before the campaign."""
SILENCE = 300.0
"""Seconds of the clock after which a call that has not ended is stopped; a busy machine needs far
fewer.
"""
CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
EXTREMES = (0, 1, 2, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)


class Call(NamedTuple):
    """One call of a campaign."""

    case: str
    """What was changed; shown where the call fails."""
    run: Callable[[], object]
    """The call, and checks of what it returns. Text that it returns is its outcome."""
    documented: tuple[type[Exception], ...]
    """Exceptions that its documentation names."""
    names: str = ""
    """What the message of such an exception must contain."""


class Fault(NamedTuple):
    """What no call may do: another exception, more than the limits, the end of its process."""

    number: int
    case: str
    what: str


Campaign = Callable[[int, int, Path], Iterator[Call]]


def run_in_child(campaign: Campaign, count: int, folder: Path, seed: int | None = None) -> Counter:
    """Number of calls by outcome: `accepted`, the exception's name, or the text that a call
    returned. Fails at the first fault, with seed and case.
    """
    seed = random.randrange(2**32) if seed is None else seed
    print(f"{campaign.__module__}: {count} calls, seed {seed}")
    outcomes: Counter[str] = Counter()
    for outcome in results(campaign, count, seed, folder):
        if isinstance(outcome, Fault):
            raise AssertionError(
                f"seed {seed}, call {outcome.number}, {outcome.case}: {outcome.what}"
            )
        outcomes[outcome] += 1
    print(dict(outcomes))
    return outcomes


def check(outcomes: Mapping[str, int], count: int, least: Mapping[str, float]) -> None:
    """Fails unless all calls were made, each outcome is one of `least` and has at least that share:
    a campaign that refuses everything shows nothing.
    """
    assert sum(outcomes.values()) == count, f"{outcomes} are not {count} calls"
    assert outcomes.keys() <= least.keys(), f"{outcomes} has others than {list(least)}"
    rare = {name: share for name, share in least.items() if outcomes.get(name, 0) < share * count}
    assert not rare, f"{outcomes} of {count} calls: these are rarer than {rare}"


def results(
    campaign: Campaign, count: int, seed: int, folder: Path, shard: int = 0, of: int = 1
) -> Generator[str | Fault, None, None]:
    """Outcome of each call whose number leaves `shard` when divided by `of`, in their order. After
    a fault a new process goes on with the next call.
    """
    mine, outcome = range(shard, count, of), None
    while mine:
        for outcome in _until_fault(campaign, (count, seed, folder), mine):
            mine = mine[1:]
            yield outcome
        if mine and not isinstance(outcome, Fault):
            raise AssertionError(f"{campaign.__module__} ended before call {mine[0]} of {count}")


def _until_fault(
    campaign: Campaign, arguments: tuple[int, int, Path], mine: range
) -> Iterator[str | Fault]:
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(target=_child, args=(campaign, arguments, mine, theirs))
    child.start()
    theirs.close()
    call: tuple[int, str] | None = None
    try:
        while (message := _next(ours, child))[0] != "end":
            if message[0] == "call":
                call = message[1:]
                continue
            if call is None:
                raise AssertionError(f"seed {arguments[1]}, between two calls: {message[1]}")
            if message[0] == "fault":
                yield Fault(*call, message[1])
                return
            call = None
            yield message[1]
    finally:
        child.kill()  # it has ended, unless nobody wants its further calls
        child.join()


def _next(ours: Any, child: Any) -> tuple:
    """What the child says next; its end or its silence is a fault of the call that it is in."""
    try:
        if ours.poll(SILENCE):
            return ours.recv()
        return "fault", f"no answer within {SILENCE:.0f} s"
    except EOFError:
        child.join()
        return "fault", f"the process ended without an answer (exit code {child.exitcode})"


def _child(campaign: Campaign, arguments: tuple[int, int, Path], mine: range, answer: Any) -> None:
    slowest, base = 0.0, _peak_bytes()
    for number, call in enumerate(campaign(*arguments)):
        if number not in mine:
            continue
        answer.send(("call", number, call.case))
        began = time.process_time()
        try:
            result = call.run()
            outcome = result if isinstance(result, str) else "accepted"
        except call.documented as error:
            outcome = type(error).__name__
            if call.names not in str(error) or not str(error):
                answer.send(("fault", f"{call.names!r} not in {outcome}: {error}"))
                return
        except BaseException as error:  # noqa: BLE001 - all others are what the campaign looks for
            answer.send(("fault", f"{type(error).__name__}: {error}"))
            return
        seconds, peak = time.process_time() - began, _peak_bytes() - base
        slowest = max(slowest, seconds)
        if seconds > SECONDS or peak > BYTES:
            answer.send(("fault", f"{seconds:.1f} s, {peak / 2**20:.0f} MiB"))
            return
        answer.send(("outcome", outcome))
    sys.stderr.write(f"slowest call {slowest:.2f} s, peak +{(_peak_bytes() - base) >> 20} MiB\n")
    answer.send(("end",))


def _peak_bytes() -> int:
    """The kernel's high-water mark of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def change_bytes(content: bytes, rng: random.Random, other: bytes = b"") -> tuple[str, bytes]:
    """(what was done, changed content): one to four changes; the beginning, where headers are, is
    hit as often as all the rest. other: content that may be spliced in.
    """
    changed, done = bytearray(content), []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        at = rng.randrange(min(size, 64) if rng.random() < 0.5 else size) if size else 0
        length = rng.choice((1, 2, 4, 8, 64, 1 + size // 3))
        kind = rng.choice(("flip", "cut", "delete", "insert", "fill", "repeat", "number", "splice"))
        if kind == "flip" and size:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[at:]
        elif kind == "delete":
            del changed[at : at + length]
        elif kind == "insert":
            changed[at:at] = rng.randbytes(min(length, 64))
        elif kind == "fill":
            changed[at : at + length] = bytes([rng.choice((0, 255))]) * len(
                changed[at : at + length]
            )
        elif kind == "repeat":
            changed[at:at] = changed[at : at + length] * rng.choice((1, 3, 50))
        elif kind == "number":
            width = rng.choice((2, 4))
            value = rng.choice(EXTREMES) % 2 ** (8 * width)
            changed[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif other:
            changed[at:] = other[rng.randrange(len(other)) :]
        done.append(f"{kind} at {at}")
    return ", ".join(done), bytes(changed)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 1.5, 10**30, float("inf"), "", " ", "x", "\0", "x" * 5000),
    *([], {}, [None], {"a": None}, [["human", "x"]], ["b.png"], {"name": 7}, "../x", "/etc/x"),
    *("<image>", "<image> <image>", "\ud800", "apache-2.0", "MIT OR Apache-2.0", "2024-13-99"),
)


def change_value(value: Any, rng: random.Random) -> tuple[str, Any]:
    """(where and how, a copy of plain data with one node changed)."""
    places = list(_places(value, ()))
    place = rng.choice(places)
    kind = rng.choice(("odd", "odd", "odd", "remove", "repeat", "wrap", "rename"))
    return f"{kind} at {'/'.join(map(str, place))}", _changed(value, place, kind, rng)


def _places(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield above
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(item, (*above, key))


def _changed(value: Any, place: tuple[Any, ...], kind: str, rng: random.Random) -> Any:
    if not place:
        return [value] if kind == "wrap" else rng.choice(ODD)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = place[0]
    if len(place) > 1:
        copy[key] = _changed(copy[key], place[1:], kind, rng)
    elif kind == "remove":
        del copy[key]
    elif kind == "repeat" and isinstance(copy, list):
        copy.insert(key, copy[key])
    elif kind == "rename" and isinstance(copy, dict):
        copy[rng.choice(("name", "license", "id", "x", "From"))] = copy.pop(key)
    elif kind == "wrap":
        copy[key] = rng.choice(([copy[key]], {"value": copy[key]}))
    else:
        copy[key] = rng.choice(ODD)
    return copy
