"""The process that may hang: Math-Verify's parser and SymPy, behind a deadline and a memory limit.

`main` is a nursery: one process without threads that imports SymPy once, then forks a worker in
milliseconds whenever its owner asks for one over its control socket (16-byte messages; the worker's
own socket travels with the request). A worker answers one JSON line with one JSON line. Guarantees:
the nursery and all workers die when their owner does, however it dies; a worker's address space is
limited, and the kernel ends it after a few CPU seconds even if nobody is left to kill it.
Does not: extract, screen what `screen.py` has screened (only what the parser's own normalisation
rewrites), or print a parsed
expression: printing one can take for ever.
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
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from moxin_lab.verifier import screen

MESSAGE = 16  # bytes of a control message: one letter, then a process id in decimal
PR_SET_PDEATHSIG = 1
PRECISION = 40  # digits at which two expressions are evaluated
AGREE = 30  # digits that must agree; 12 where a decimal was written, which SymPy holds with 15
POINTS = 4


# ---------------------------------------------------------------------------------------------------------
# processes


def main(descriptor: int, owner: int) -> None:
    """Serve requests to fork (F and the bytes a worker may have) and to kill (K and its process id)
    until the owner is gone.
    """
    control = socket.socket(fileno=descriptor)
    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns that its own time limit is off: ours is outside
    _warm_up()
    gc.collect()
    gc.freeze()  # what is shared stays shared: workers do not touch these objects' counters when collecting
    children: set[int] = set()
    try:
        control.sendall(b"ready".ljust(MESSAGE))
        while os.getppid() == owner:
            readable, _, _ = select.select([control], [], [], 1.0)
            with contextlib.suppress(ChildProcessError):
                while (gone := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                    children.discard(gone)
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
        fresh = _address_space()
        with socket.socket(fileno=descriptor) as wire:
            _send(wire, {"pid": os.getpid(), "memory_limited": limited})
            with wire.makefile("rb") as lines:
                for line in lines:
                    job = json.loads(line)
                    spent = resource.getrusage(resource.RUSAGE_SELF)
                    cpu = int(spent.ru_utime + spent.ru_stime + job["seconds"]) + 2
                    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))
                    reply = judge(job["gold"], job["answer"], screen.Limits(**job["limits"]))
                    reply["last"] = (
                        reply.pop("spent", False) or _address_space() > (fresh + memory_bytes) // 2
                    )
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
    """Fill the parser's tables and SymPy's, so that no worker pays for them within its deadline."""
    for gold, answer in [
        (r"\frac{1}{2}+\sqrt{3}", r"\sqrt{3}+\frac{1}{2}"),
        ("x^{2}+3x-6", "-6+x(x+3)"),
        (r"(3,\frac{\pi}{2})", r"(3,\pi)"),
        (r"(-\infty,2)\cup(3,\infty)", "[1,2]"),
        ("y=2x+3", "2x+4"),
        (r"\{1,2\}", r"1 \pm 2"),
        ("|x|<2", r"\sin x"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
        ("((1+(2)))", "n!"),
        (r"\log_2 x", r"\ln(3x)"),
        (r"\text{odd}", "e^{2x}"),
        ("2+3i", r"\binom{5}{2}"),
        ("52_8", "f(x)=3"),
        (r"x\in[-2,7]", r"-2\le x\le 7"),
        ("2x-3y=4", "4x-6y=8"),
        ("x>3", "x<y"),
        (r"50%", "0.5"),
        (r"\frac{x^2-1}{x+1}", r"\sum_{k=1}^{3} k"),
    ]:
        judge(gold, answer)


# ----------------------------------------------------------------------------------------------------------
# judgement


def judge(gold: str, answer: str, limits: screen.Limits | None = None) -> dict[str, Any]:
    """Two normalised, screened answers: reason, detail, and `spent` where this process should not
    be used again.
    """
    limits = limits or screen.Limits()
    try:
        parsed_answer = parse(answer, limits)
        if parsed_answer is None:
            return {
                "reason": "unparsable",
                "detail": "Math-Verify's parser does not read it, and it is not the gold's text",
            }
        parsed_gold = parse(gold, limits)
        if parsed_gold is None:
            return {
                "reason": "wrong",
                "detail": "the gold is text to Math-Verify's parser, and the answer is another text",
            }
        equal = same(parsed_gold, parsed_answer)
        by = "values agree" if equal else "values differ"
        if equal is None:
            from math_verify import verify

            gold_set, answer_set = _without_name(parsed_gold, parsed_answer)
            equal = verify(gold_set, answer_set, timeout_seconds=None, allow_set_relation_comp=True)
            by = "Math-Verify's comparison"
        return {"reason": "correct" if equal else "wrong", "detail": by}
    except screen.Refused as refusal:
        return {"reason": "refused_bomb", "detail": str(refusal)}
    except MemoryError:
        return {
            "reason": "refused_bomb",
            "detail": "needed more memory than a worker has",
            "spent": True,
        }
    except RecursionError:
        return {"reason": "unparsable", "detail": "nested too deeply for SymPy", "spent": True}


@lru_cache(maxsize=256)
def parse(text: str, limits: screen.Limits) -> Any:
    """A SymPy object of a LaTeX answer, or None. Unevaluated where the parser allows it."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex

    config = NormalizationConfig(
        basic_latex=True,
        units=True,
        malformed_operators=True,
        nits=True,
        boxed="none",
        equations=False,
    )
    normalised = normalize_latex(text, config=config)
    for candidate in dict.fromkeys([normalised, normalised.rpartition("=")[2].strip()]):
        if not candidate:
            continue
        refusal = (
            screen.screen(candidate, limits) if candidate != text else None
        )  # (10^9)_{5} has become a factorial on the way
        if refusal is not None:
            raise screen.Refused(refusal)
        try:
            parsed = latex2sympy(
                candidate,
                is_real=not should_treat_as_complex(candidate),
                convert_degrees=False,
                normalization_config=None,
            )
        except (MemoryError, RecursionError):
            raise
        except Exception:  # noqa: BLE001 (the parser raises bare Exception for text that it cannot read)
            continue
        return parsed
    return None


def same(gold: Any, answer: Any) -> bool | None:
    """Equal, different, or None where this comparison does not apply.

    Expressions are compared by value: at random rational points, the same for both, with 40 digits
    (Schwartz-Zippel's argument: different analytic expressions agree at a random point with
    probability zero). Tuples, intervals, sets and matrices are compared part by part. Relations and
    the rest are left to Math-Verify.
    """
    from sympy import Eq, Expr, FiniteSet, Interval, MatrixBase, Rational, Symbol, Tuple, Union

    gold, answer = _without_name(gold, answer)
    if isinstance(gold, Rational) and isinstance(answer, Rational):
        return gold == answer
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return gold.shape == answer.shape and _all(
            same(g, a) for g, a in zip(gold.flat(), answer.flat(), strict=True)
        )
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        if (gold.left_open, gold.right_open) != (answer.left_open, answer.right_open):
            return False
        return _all(same(g, a) for g, a in ((gold.start, answer.start), (gold.end, answer.end)))
    gold_items, answer_items = _ordered_items(gold), _ordered_items(answer)
    if gold_items is not None and answer_items is not None:
        if len(gold_items) != len(answer_items):
            return False
        return _all(same(g, a) for g, a in zip(gold_items, answer_items, strict=True))
    if isinstance(gold, FiniteSet | Union) and type(gold) is type(answer):
        return _same_collection(list(gold.args), list(answer.args))
    if isinstance(gold, Tuple | Eq) or not isinstance(gold, Expr) or not isinstance(answer, Expr):
        return None
    if any(isinstance(side, Symbol) for side in (gold, answer)) and all(
        _is_word(side) for side in (gold, answer)
    ):
        return None  # x, or the word that the parser reads as a product of letters: Math-Verify knows which
    return _same_value(gold, answer)


def _without_name(gold: Any, answer: Any) -> tuple[Any, Any]:
    """Both sides, where only one of them is written as `x = value`, without that `x =`."""
    from sympy import Eq, Symbol

    named = [isinstance(side, Eq) and isinstance(side.lhs, Symbol) for side in (gold, answer)]
    if named[0] == named[1]:
        return gold, answer
    return (gold.rhs, answer) if named[0] else (gold, answer.rhs)


def _is_word(value: Any) -> bool:
    from sympy import E, Mul, Symbol

    return isinstance(value, Symbol) or (
        isinstance(value, Mul) and all(isinstance(a, Symbol) or a == E for a in value.args)
    )


def _ordered_items(value: Any) -> list[Any] | None:
    """A tuple's items; those of an open interval too, which is how the parser reads a pair of
    numbers.
    """
    from sympy import Interval, Tuple

    if isinstance(value, Tuple):
        return list(value.args)
    if isinstance(value, Interval) and value.left_open and value.right_open:
        return [value.start, value.end]
    return None


def _all(verdicts: Iterator[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


def _same_collection(gold: list[Any], answer: list[Any]) -> bool | None:
    """Sets as sets: every item of one has its equal in the other."""
    if len(gold) > 30 or len(answer) > 30:
        return None
    unknown = False
    for one, other in ((gold, answer), (answer, gold)):
        for item in one:
            verdicts = [same(item, candidate) for candidate in other]
            if not any(verdicts):
                if None not in verdicts:
                    return False
                unknown = True
    return None if unknown else True


def _same_value(gold: Any, answer: Any) -> bool | None:
    from sympy import Float, Rational, Symbol, UnevaluatedExpr

    if gold.has(UnevaluatedExpr) or answer.has(
        UnevaluatedExpr
    ):  # a percent sign: Math-Verify takes it or leaves it
        return None
    digits = 12 if gold.has(Float) or answer.has(Float) else AGREE
    names = sorted({symbol.name for side in (gold, answer) for symbol in side.free_symbols})
    if any(
        not isinstance(symbol, Symbol) for side in (gold, answer) for symbol in side.free_symbols
    ):
        return None
    compared = 0
    for point in range(POINTS if names else 1):
        # Points are fixed rationals with large primes, of both signs, the same for both sides
        # whatever their assumptions.
        value = {
            name: Rational(
                (-1 if (point >> (i % 3)) & 1 else 1) * (1009 + 613 * i + 211 * point),
                577 + 89 * i + 37 * point,
            )
            for i, name in enumerate(names)
        }
        sides = [_evaluate(side, value) for side in (gold, answer)]
        if any(side is None for side in sides):
            continue
        if not _agree(sides[0], sides[1], digits):
            return not names and digits == 12 and _rounded(gold, answer, sides)
        compared += 1
    if compared == 0:
        return None
    if not names and digits == AGREE:
        exact = [side.doit() for side in (gold, answer)]
        if all(isinstance(side, Rational) for side in exact):
            return exact[0] == exact[1]  # 2^{200} and 2^{200}+1 agree in 30 digits
    return True


def _evaluate(expression: Any, values: dict[str, Any]) -> Any:
    """A complex number with `PRECISION` digits as an mpmath value, or None where the expression has
    none there.
    """
    from sympy import I, Number

    substitution = {symbol: values[symbol.name] for symbol in expression.free_symbols}
    try:
        number = (expression.subs(substitution) if substitution else expression).evalf(PRECISION)
        real, imaginary = number.as_real_imag()
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 (SymPy raises many kinds for what has no value, such as a logarithm of zero)
        return None
    if not (
        isinstance(real, Number)
        and isinstance(imaginary, Number)
        and real.is_finite
        and imaginary.is_finite
    ):
        return None
    return real + I * imaginary if imaginary else real


def _agree(a: Any, b: Any, digits: int) -> bool:
    from sympy import Float

    size = max(abs(a).evalf(20), abs(b).evalf(20))
    if size < Float("1e-80"):  # both are zero: evaluation cannot tell zero from less than that
        return True
    return bool(abs(a - b).evalf(20) <= size * Float(10) ** -digits)


def _rounded(gold: Any, answer: Any, sides: list[Any]) -> bool:
    """One of two constants is a plain decimal, and the other rounds to it at six digits or more
    after the point.
    """
    from sympy import Float

    difference = abs(sides[0] - sides[1])
    return (
        any(isinstance(side, Float) for side in (gold, answer))
        and bool(difference.evalf(20) < Float("5e-7"))
        and bool(abs(sides[0]).evalf(20) > Float("0.1"))
    )
