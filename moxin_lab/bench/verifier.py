r"""The answer verifier beside Math-Verify, TRL's `accuracy_reward` and a plain SymPy grader, on the
same inputs in the same run.

Suites: by kind of answer, rewrites that must be accepted and near-misses that must be refused,
generated from the gold answers of every set in the folder (`verifier_pairs`); gold answers against
themselves; spellings of them; shuffled pairs; the tests' corpora; hostile answers (which must be
decided at all); and a mixed batch of 512. MOXIN_BENCHMARKS names the folder.

Guarantees: a peer runs in its own process, gets `--peer-deadline` seconds per item and is killed
after that, so its hang is a number in its row; its start is not counted. Times are CPU time, of the
calling thread and the process that decided, so that other work on the machine does not count.
Shuffled pairs that are the same text or the same rational number are omitted by a reading that is
not the verifier's own. Wrong pairs that any grader accepted are listed, to be read by a person.
Out of scope: a limit on a peer's memory, and several processes for peers; their seconds are of one
process, ours of `--workers`.
"""

import argparse
import json
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from moxin_lab.bench.keeping import Keep, keeping
from moxin_lab.bench.verifier_pairs import Item, golds, pairs
from moxin_lab.lab.artifacts import LabError, find_root
from moxin_lab.verifier.verifier import Verdict, Verifier

CORPUS = Path("tests") / "verifier" / "verifier_corpus.json"
KINDS = Path("tests") / "verifier" / "kinds.json"
SPELLED = ("MATH-500", "AMC")  # sets whose answers are written in other ways
MIXED = 512


def _integer(gold: str, make: Callable[[int], str]) -> str | None:
    return make(int(gold)) if re.fullmatch(r"-?\d+", gold) else None


def _fraction(gold: str, make: Callable[[int, int], str]) -> str | None:
    match = re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", gold)
    return make(int(match.group(1)), int(match.group(2))) if match else None


REWRITES: dict[str, Callable[[str], str | None]] = {
    r"n as \frac{2n}{2}": lambda g: _integer(g, lambda n: rf"\frac{{{2 * n}}}{{2}}"),
    "n as 2n/2": lambda g: _integer(g, lambda n: f"{2 * n}/2"),
    "n as n.0": lambda g: _integer(g, lambda n: f"{n}.0"),
    "n with thousands separators": lambda g: (
        _integer(g, lambda n: f"{n:,}") if len(g) > 3 else None
    ),
    "n with a unit": lambda g: _integer(g, lambda n: rf"{n}\text{{ units}}"),
    "n with a degree sign": lambda g: _integer(g, lambda n: rf"{n}^\circ"),
    "n with a percent sign": lambda g: _integer(g, lambda n: rf"{n}\%"),
    "n with a dollar sign": lambda g: _integer(g, lambda n: rf"\${n}"),
    "fraction, unreduced": lambda g: _fraction(g, lambda a, b: rf"\frac{{{2 * a}}}{{{2 * b}}}"),
    r"fraction as \dfrac": lambda g: _fraction(g, lambda a, b: rf"\dfrac{{{a}}}{{{b}}}"),
    "fraction as a/b": lambda g: _fraction(g, lambda a, b: f"{a}/{b}"),
    "x = in front": lambda g: f"x={g}",
    "spaces around": lambda g: f"  {g}  ",
    r"\left and \right": lambda g: (
        g.replace("(", r"\left(").replace(")", r"\right)")
        if "(" in g and g.count("(") == g.count(")") and r"\left" not in g and r"\text" not in g
        else None
    ),
}


def _plain_value(text: str) -> Fraction | None:
    """A rational number by a reading of its own, for leaving out shuffled pairs that are equal
    after all.
    """
    text = re.sub(r"\\[,!; ]|\\?\$|\s|\^\{?\\circ\}?|\\text\{[^{}]*\}|\\%", "", text).replace(
        r"\dfrac", r"\frac"
    )
    text = re.sub(r"^x=", "", text)
    match = re.fullmatch(r"(-?)\\frac\{?(\d+)\}?\{?(\d+)\}?", text)
    if match:
        return Fraction(int(match.group(1) + match.group(2)), int(match.group(3)))
    text = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+", text) else text
    return Fraction(text) if re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)", text) else None


def wrong_pairs(pool: list[str], count: int, seed: int) -> list[Item]:
    """Gold and another item's gold, drawn with the seed; pairs of the same text or rational are
    drawn again.
    """
    draw = random.Random(seed)
    pairs: list[Item] = []
    while len(pairs) < count:
        gold, answer = draw.sample(pool, 2)
        same_text = re.sub(r"\s", "", gold) == re.sub(r"\s", "", answer)
        value = _plain_value(gold)
        if not same_text and (value is None or value != _plain_value(answer)):
            pairs.append(Item(gold, answer))
    return pairs


def hostile(corpus: dict[str, Any], origin: str | None = None) -> list[Item]:
    """Hostile answers of the corpus, each against a plain fraction and built from its repeated
    pieces.
    """
    return [
        Item("1/2", "".join(text * times for text, times in entry["pieces"]))
        for entry in corpus["hostile"]
        if origin is None or entry["from"] == origin
    ]


def mixed(sets: dict[str, list[str]], corpus: dict[str, Any], seed: int) -> list[Item]:
    """512 answers as a rollout may bring them: 300 right in some spelling, 160 wrong, 52 hostile,
    shuffled.
    """
    draw = random.Random(seed)
    pool = [gold for answers in sets.values() for gold in answers]
    right: list[Item] = []
    while len(right) < 300:
        gold = draw.choice(pool)
        answer = draw.choice(list(REWRITES.values()))(gold)
        if answer is not None:
            right.append(Item(gold, answer))
    bombs = hostile(corpus)
    items = right + wrong_pairs(pool, 160, seed + 1) + draw.sample(bombs, min(52, len(bombs)))
    draw.shuffle(items)
    return items


# ------------------------------------------------------------------
# peers


def _in_a_box(gold: str) -> str:
    """The gold answer as these peers read it; a text that has a box already is unchanged."""
    return gold if "boxed" in gold else rf"\boxed{{{gold}}}"


def _math_verify(gold: str, completion: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(_in_a_box(gold)), parse(completion)))


def _trl(gold: str, completion: str) -> bool:
    from trl.rewards import accuracy_reward

    return (
        accuracy_reward([[{"role": "assistant", "content": completion}]], [_in_a_box(gold)])[0]
        == 1.0
    )


def _sympy(gold: str, completion: str) -> bool:
    """What one writes first: parse both, simplify the difference."""
    from sympy import simplify
    from sympy.parsing.latex import parse_latex
    from sympy.parsing.sympy_parser import parse_expr

    def parse(text: str) -> Any:
        return parse_latex(text, backend="lark") if "\\" in text else parse_expr(text)

    answer = completion[len(r"The answer is \boxed{") : -len("}.")]
    try:
        return bool(simplify(parse(gold) - parse(answer)) == 0)
    except Exception:  # noqa: BLE001 (whatever cannot be parsed or subtracted is not equal to this grader)
        return False


PEERS = {"math-verify": _math_verify, "trl accuracy_reward": _trl, "sympy": _sympy}


def completion_of(item: Item) -> str:
    """What a model would have written: the item's own completion, or a sentence with a box."""
    return item.raw if item.raw is not None else rf"The answer is \boxed{{{item.answer}}}."


def serve_peer(name: str, descriptor: int) -> None:
    """A peer's process: one JSON line in, one out. Runs on the main thread, where Math-Verify's own
    time limits work.
    """
    import warnings

    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (for the process's life)
    grade = PEERS[name]
    grade(r"\frac{1}{2}", r"The answer is \boxed{\frac{2}{4}}.")
    with socket.socket(fileno=descriptor) as wire, wire.makefile("rb") as lines:
        wire.sendall(b"ready\n")
        for line in lines:
            gold, completion = json.loads(line)
            started = time.process_time()
            try:
                verdict: Any = grade(gold, completion)
            except Exception as error:  # noqa: BLE001 (a peer's exception is its answer: not accepted, and counted)
                verdict = type(error).__name__
            used = time.process_time() - started
            wire.sendall(json.dumps([verdict, used]).encode() + b"\n")


class Peer:
    """A peer in a process that is killed when an item takes longer than the deadline."""

    def __init__(self, name: str, deadline: float):
        self.name, self.deadline = name, deadline
        self.process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        self.wire, theirs = socket.socketpair()
        code = (
            "from moxin_lab.bench.verifier import serve_peer; "
            f"serve_peer({self.name!r}, {theirs.fileno()})"
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
            )
        self.lines = self.wire.makefile("rb")
        self.wire.settimeout(300)
        if self.lines.readline() != b"ready\n":
            raise LabError(f"{self.name} did not start: see its traceback above")

    def __call__(self, item: Item) -> bool | str:
        """True, False, the name of its exception, or `no reply` after the deadline."""
        if self.process is None:
            self._start()
        started = time.perf_counter()
        self.wire.settimeout(self.deadline)
        self.wire.sendall(json.dumps([item.gold, completion_of(item)]).encode() + b"\n")
        try:
            line = self.lines.readline()
        except TimeoutError:
            line = b""
        self.seconds = time.perf_counter() - started  # of one without a reply
        if not line:
            self.close()
            return "no reply"
        verdict, self.seconds = json.loads(line)
        return verdict

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.lines.close()
            self.wire.close()
            self.process = None


# ------------------------------------------------------------------
# measure


def _row(suite: str, grader: str, outcomes: list[Any], seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    return {
        "suite": suite,
        "grader": grader,
        "items": len(outcomes),
        "accepted": sum(o is True for o in outcomes),
        "no_reply": sum(o == "no reply" for o in outcomes),
        "median_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "worst_s": ordered[-1],
    }


def _measure(grade: Callable[[Item], Any], items: Iterable[Item]) -> tuple[list[Any], list[float]]:
    outcomes, seconds = [], []
    for item in items:
        started = time.thread_time()
        outcome = grade(item)
        if isinstance(outcome, Verdict):
            outcomes.append(outcome.correct)
            seconds.append(time.thread_time() - started + outcome.cpu_seconds)
        else:  # a killed peer's restart is not part of the item
            outcomes.append(outcome)
            seconds.append(grade.seconds if isinstance(grade, Peer) else 0.0)
    return outcomes, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="our processes (default 2)")
    parser.add_argument(
        "--items",
        type=int,
        default=0,
        help="items of each suite, drawn with the seed (default: all)",
    )
    parser.add_argument(
        "--kind-pairs",
        type=int,
        default=100,
        help="rewrites, and near-misses, of each kind of answer (default 100)",
    )
    parser.add_argument(
        "--pairs", type=int, default=1000, help="shuffled wrong pairs per seed (default 1000)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="seeds of shuffled pairs for ours; peers get the first (default 3)",
    )
    parser.add_argument(
        "--peer-items",
        type=int,
        default=0,
        help="items of each suite that peers get, drawn with a seed (default: all)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=list(PEERS),
        choices=list(PEERS),
        help="default: all; give none for ours only",
    )
    parser.add_argument(
        "--peer-deadline",
        type=float,
        default=10.0,
        help="seconds per item before a peer is killed (default 10)",
    )
    parser.add_argument(
        "--all-hostile",
        action="store_true",
        help="peers get our own hostile answers too (many minutes)",
    )
    parser.add_argument(
        "--no-texts",
        action="store_true",
        help="count accepted wrong pairs only: their texts are the benchmarks' own",
    )
    parser.add_argument(
        "--mixed-budget",
        type=float,
        default=60.0,
        help="seconds a peer gets for the mixed 512 (default 60)",
    )


@keeping("verifier")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows of all suites and graders; `accepted_wrong`: shuffled pairs that a grader accepted (with
    `--no-texts` the number, by grader); `verifier`: its settings; `load`: processes that wanted a
    core, before and after.
    """
    folder = os.environ.get("MOXIN_BENCHMARKS")
    if not folder:
        raise LabError(
            "set MOXIN_BENCHMARKS to the folder that holds math/math500.json,"
            " math/gsm8k_test.json,"
            "math/amc.json or other sets of gold answers"
        )
    load = os.getloadavg()[0]
    try:
        sets = golds(Path(folder))
    except (OSError, ValueError) as error:
        raise LabError(f"MOXIN_BENCHMARKS is {folder}: {error}") from error
    root = find_root(options.root) if options.root else find_root()
    corpus = json.loads((root / CORPUS).read_text(encoding="utf-8"))
    kinds = json.loads((root / KINDS).read_text(encoding="utf-8"))
    pool = [gold for answers in sets.values() for gold in answers]

    def some(items: list[Item]) -> list[Item]:
        return (
            random.Random(0).sample(items, options.items)
            if 0 < options.items < len(items)
            else items
        )

    suites: dict[str, list[Item]] = {
        f"{kind}: {'rewrites' if equal else 'near-misses'}": items
        for (kind, equal), items in pairs(sets, options.kind_pairs).items()
    }
    suites |= {
        f"{name}: gold itself": some([Item(g, g) for g in answers])
        for name, answers in sets.items()
    }
    for name, rewrite in REWRITES.items():
        written = [
            Item(gold, answer)
            for gold in (gold for name in SPELLED for gold in sets.get(name, []))
            if (answer := rewrite(gold)) is not None
        ]
        if written:
            suites[name] = some(written)
    suites["corpus: equal"] = [Item(gold, answer) for gold, answer in corpus["equal"]]
    suites["corpus: different"] = [Item(gold, answer) for gold, answer in corpus["different"]]
    for label in ("equal", "different"):
        suites[f"kinds of the tests: {label}"] = [
            Item(*pair)
            for kind, cases in kinds.items()
            if kind != "gold in a box"
            for pair in cases[label]
        ]
    for seed in range(options.seeds):
        suites[f"shuffled pairs, seed {seed}"] = wrong_pairs(pool, options.pairs, seed)
    suites["hostile, published"] = hostile(corpus, "3c")
    suites["hostile, our own"] = hostile(corpus, "ours")
    batch = mixed(sets, corpus, seed=0)

    rows: list[dict[str, Any]] = []
    accepted_wrong: list[dict[str, str]] = []

    def add(suite: str, grader: str, grade: Callable[[Item], Any]) -> None:
        items = suites[suite]
        if isinstance(grade, Peer) and 0 < options.peer_items < len(items):
            items = random.Random(0).sample(items, options.peer_items)
        outcomes, seconds = _measure(grade, items)
        rows.append(_row(suite, grader, outcomes, seconds))
        keep({"rows": rows})
        _progress(rows[-1])
        if suite.startswith("shuffled"):
            for item, outcome in zip(items, outcomes, strict=True):
                if outcome is True:
                    accepted_wrong.append(
                        {"grader": grader, "gold": item.gold, "answer": item.answer}
                    )

    settings = _ours(options, suites, batch, add, rows)
    for name in options.peers:
        peer = Peer(name, options.peer_deadline)
        for suite in suites:
            if suite.startswith("shuffled") and not suite.endswith("seed 0"):
                continue
            if suite == "hostile, our own" and not options.all_hostile:
                rows.append(
                    {"suite": suite, "grader": name, "reason": "not run without --all-hostile"}
                )
                continue
            add(suite, name, peer)
        outcomes: list[Any] = []
        seconds: list[float] = []
        for item in batch:
            if sum(seconds) >= options.mixed_budget:
                break
            outcomes.append(peer(item))
            seconds.append(peer.seconds)
        row = _row(f"mixed {MIXED}", name, outcomes, seconds) | {"total_s": sum(seconds)}
        rows.append(
            row
            | (
                {"reason": f"stopped after {options.mixed_budget:.0f} s"}
                if len(outcomes) < MIXED
                else {}
            )
        )
        _progress(rows[-1])
        peer.close()
    listed: Any = (
        Counter(pair["grader"] for pair in accepted_wrong) if options.no_texts else accepted_wrong
    )
    return {
        "rows": rows,
        "accepted_wrong": listed,
        "verifier": settings,
        "sets": {name: len(answers) for name, answers in sets.items()},
        "load": [load, os.getloadavg()[0]],
    }


def _ours(
    options: argparse.Namespace,
    suites: dict[str, list[Item]],
    batch: list[Item],
    add: Any,
    rows: list[Any],
) -> dict[str, Any]:
    def from_a_thread(verifier: Verifier) -> None:
        for suite in ("hostile, published", "hostile, our own"):
            outcomes, seconds = _measure(
                lambda item: verifier.verify(completion_of(item), item.gold), suites[suite]
            )
            rows.append(_row(f"{suite}, from a thread", "ours", outcomes, seconds))

    started = time.perf_counter()
    with Verifier(
        workers=options.workers, cache_size=1
    ) as verifier:  # times of verdicts, not of remembering them
        start_seconds = time.perf_counter() - started
        for suite in suites:
            add(suite, "ours", lambda item: verifier.verify(completion_of(item), item.gold))
        counts = verifier.counts()
    with Verifier(workers=options.workers, cache_size=1) as verifier:
        thread = threading.Thread(target=from_a_thread, args=(verifier,))
        thread.start()
        thread.join()
    with Verifier(workers=options.workers) as verifier:
        started = time.perf_counter()
        verdicts = verifier.verify_batch(
            [completion_of(item) for item in batch], [item.gold for item in batch]
        )
        total = time.perf_counter() - started
        each = [total / len(batch)]
        rows.append(
            _row(f"mixed {MIXED}", "ours", [v.correct for v in verdicts], each)
            | {"total_s": total, "worst_s": None}
        )
        rows[-1] |= {"median_ms": None, "p99_ms": None}
        _progress(rows[-1])
        reasons = {key: count for key, count in verifier.counts().items() if count}
    return {
        "workers": options.workers,
        "timeout_s": verifier.timeout,
        "memory_bytes": verifier.memory_bytes,
        "start_s": start_seconds,
        "counts": counts,
        "mixed_counts": reasons,
        "worker_peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


def _progress(row: dict[str, Any]) -> None:
    print(
        f"{row['grader']}: {row['suite']}: {row['accepted']} of {row['items']} accepted",
        file=sys.stderr,
    )
