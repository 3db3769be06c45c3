"""The process that may hang: comparison by numbers and Math-Verify's parser, behind a time and a
memory limit.

`main` is a fork server: one process without threads that imports mpmath and SymPy once, then
forks a worker in milliseconds whenever its owner asks for one over its control socket (16-byte
messages; the worker's own socket travels with the request). A worker answers one JSON line with
one JSON line.

Guarantees: the fork server and all workers end when their owner does, however it ends; a worker's
address space is limited, and the kernel ends it after a few CPU seconds even if nobody is left to
kill it.
Out of scope: extraction, screening what `screen` has screened, and the deadline (`pool` watches
it).
"""

import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

from moxin_lab.verifier import screen, symbolic
from moxin_lab.verifier.compare import RULES, compare

MESSAGE = 16  # bytes of a control message: one letter, then a process id in decimal
PR_SET_PDEATHSIG = 1

# ---------------------------------------------------------------------- processes


def main(descriptor: int, owner: int) -> None:
    """Serve requests to fork (F and the bytes a worker may have) and to kill (K and its process id)
    until the owner is gone.
    """
    control = socket.socket(fileno=descriptor)
    # Math-Verify warns that its own time limit is off: ours is outside.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _warm_up()
    gc.collect()
    gc.freeze()  # shared pages stay shared: workers do not touch these objects' counters
    children: set[int] = set()
    try:
        control.sendall(b"ready".ljust(MESSAGE))
        while os.getppid() == owner:
            readable, _, _ = select.select([control], [], [], 1.0)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                    children.discard(ended)
            if not readable:
                continue
            message, sockets, _, _ = socket.recv_fds(control, MESSAGE, 1)
            if not message:
                break
            if message[:1] == b"F":
                child = os.fork()
                if child == 0:
                    _work(control, sockets[0], int(message[1:]))
                children.add(child)
                os.close(sockets[0])
            elif (victim := int(message[1:])) in children:
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
                children.discard(victim)
    except (ConnectionError, KeyboardInterrupt):
        pass  # the owner is gone: what follows is all that is left to do
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _work(control: socket.socket, descriptor: int, memory_bytes: int) -> None:
    """A worker's whole life. Never returns."""
    code = 1
    try:
        control.close()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        limited = True
        try:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        except (ValueError, OSError):
            limited = False  # macOS does not limit the address space; the owner says so once
        at_start = _address_space()
        with socket.socket(fileno=descriptor) as wire:
            _send(wire, {"pid": os.getpid(), "memory_limited": limited})
            with wire.makefile("rb") as lines:
                for line in lines:
                    job = json.loads(line)
                    spent = resource.getrusage(resource.RUSAGE_SELF)
                    cpu = int(spent.ru_utime + spent.ru_stime + job["seconds"]) + 2
                    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))
                    started = time.process_time()
                    reply = judge(job["gold"], job["answer"], screen.Limits(**job["limits"]))
                    reply["cpu"] = time.process_time() - started
                    too_large = _address_space() > (at_start + memory_bytes) // 2
                    reply["last"] = reply.pop("spent", False) or too_large
                    _send(wire, reply)
                    if reply["last"]:
                        break
        code = 0
    finally:
        os._exit(code)


def _send(wire: socket.socket, message: dict[str, Any]) -> None:
    wire.sendall(json.dumps(message).encode() + b"\n")


def _address_space() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:  # noqa: PTH123 (read often)
            return int(pages.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # no /proc: not Linux
        return 0


def _warm_up() -> None:
    """Import what a comparison may need and fill its tables, so that no worker pays for them."""
    for gold, answer in [
        (r"\frac{1}{2}+\sqrt{3}", r"\sqrt{3}+\frac{1}{2}"),
        ("x^{2}+3x-6", "-6+x(x+3)"),
        (r"(-\infty,2)\cup(3,\infty)", "x^2>1"),
        ("y=2x+3", "x^2+y=4"),
        ("xy=1", "y=1/x"),
        (r"\sin x", r"\log_2 x"),
        (r"\int_0^1 x^2\,dx", r"\frac{1}{3}"),
        (r"\lim_{x \to 0} \frac{\sin x}{x}", r"\sum_{k=1}^{\infty} 2^{-k}"),
        (r"\frac{d}{dx} x^2", "2x"),
    ]:
        judge(gold, answer)


# ---------------------------------------------------------------------- judgement


def judge(gold: str, answer: str, limits: screen.Limits | None = None) -> dict[str, Any]:
    """Two normalised, screened answers: reason, type, rule, detail, and `spent` where this process
    should not be used again.
    """
    limits = limits or screen.Limits()
    try:
        decision = compare(gold, answer)
        if decision.unread:
            return _unread(gold, answer, limits)
        return {
            "reason": "correct" if decision.equal else "wrong",
            "type": decision.type,
            "rule": decision.rule,
            "detail": f"{decision.type}: {'the same' if decision.equal else 'not the same'}",
        }
    except screen.Refused as refusal:
        return _refused(str(refusal))
    except (ArithmeticError, LookupError, ValueError) as error:
        return _unparsable(f"cannot be compared: {type(error).__name__}")
    except MemoryError:
        return _refused("needed more memory than a worker has") | {"spent": True}
    except RecursionError:
        return _unparsable("nested too deeply to be compared") | {"spent": True}


def _unparsable(detail: str) -> dict[str, Any]:
    said = {"type": "unread", "rule": RULES["unread"]}
    return said | {"reason": "unparsable", "detail": detail}


def _refused(detail: str) -> dict[str, Any]:
    return {"reason": "refused_bomb", "type": "unread", "rule": "the screen", "detail": detail}


def _unread(gold: str, answer: str, limits: screen.Limits) -> dict[str, Any]:
    """One of the two is mathematics beyond the grammar: Math-Verify's parser reads both."""
    said = {"type": "unread", "rule": RULES["unread"]}
    parsed_answer = symbolic.parse(answer, limits)
    if parsed_answer is None:
        return said | {
            "reason": "unparsable",
            "detail": "neither the grammar nor Math-Verify's parser reads it",
        }
    parsed_gold = symbolic.parse(gold, limits)
    if parsed_gold is None:
        return said | {"reason": "wrong", "detail": "the gold answer is no expression, this one is"}
    equal = symbolic.same_value(parsed_gold, parsed_answer)
    detail = {True: "values agree", False: "values differ", None: "no value to compare"}[equal]
    return said | {"reason": "correct" if equal else "wrong", "detail": detail}
