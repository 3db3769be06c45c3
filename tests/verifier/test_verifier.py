"""What the verifier promises with its processes: bounded time and memory from any thread, no answer
lost, nothing left behind.
"""

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.verifier import pool
from moxin_lab.verifier.compare import RULES
from moxin_lab.verifier.pool import acquire
from moxin_lab.verifier.screen import Limits
from moxin_lab.verifier.verifier import REASONS, Verdict, Verifier, VerifierClosed

KINDS = json.loads((Path(__file__).parent / "kinds.json").read_text(encoding="utf-8"))
CORPUS = json.loads((Path(__file__).parent / "verifier_corpus.json").read_text(encoding="utf-8"))
HOSTILE = ["".join(text * times for text, times in entry["pieces"]) for entry in CORPUS["hostile"]]
UNLIMITED = Limits(bits=math.inf, power=math.inf, terms=math.inf)
# Passes the screen and takes minutes.
SLOW = r"\boxed{\int_0^{\infty} \frac{\sin(x^x)}{\ln(1+x^{x^x})}\,dx}"


@pytest.fixture(
    scope="session"
)  # for the session, so that the other files' verifiers find the fork server running
def verifier():
    """With seconds to spare for a machine that others load: the tests that are about time make
    their own.
    """
    with Verifier(workers=2, timeout=5) as verifier:
        yield verifier


def boxed(answer):
    return rf"Therefore the answer is \boxed{{{answer}}}."


def workers_of(verifier):
    """Process ids of the fork server and its workers."""
    return acquire(id(verifier)).process.pid, [worker.pid for worker in verifier._live]


def gone(pids, seconds=10.0):
    """Whether all processes have ended (or are zombies that init has not reaped yet) within some
    seconds.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(
            psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
            for pid in pids
        ):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("gold", "answer"), CORPUS["equal"])
def test_equal_answers_are_accepted(verifier, gold, answer):
    verdict = verifier.verify(boxed(answer), gold)
    assert verdict.correct, verdict


@pytest.mark.parametrize(("gold", "answer"), CORPUS["different"])
def test_different_answers_are_refused(verifier, gold, answer):
    verdict = verifier.verify(boxed(answer), gold)
    assert not verdict.correct, verdict


@pytest.mark.parametrize(
    "trick",
    [
        r"\frac{0}{0}",
        r"\infty",
        "x=x",
        r"\emptyset",
        r"(-\infty,\infty)",
        r"x\in\mathbb{R}",
        r"\text{any}",
        r"\infty-\infty",
        "1/0",
        "1,2,3,4,5,6",
        "f(x)",
        "5 or 6",
        "?",
        r"\text{}",
        "{}",
        "0.0000001",
        "nan",
        r"\ldots",
        "x>0",
        "**",
        r"\pm 7",
        r"0 \cdot \infty",
    ],
)
def test_no_trick_is_accepted_for_every_gold(verifier, trick):
    golds = [
        "7",
        r"\frac{3}{4}",
        "x+1",
        r"\sqrt{5}",
        "(1,2]",
        "1,-2",
        "y = 2x + 3",
        r"\text{Evelyn}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    ]
    assert not any(
        verdict.correct for verdict in verifier.verify_batch([boxed(trick)] * len(golds), golds)
    )


def test_an_answer_without_a_box_is_read_whole_or_not_at_all(verifier):
    for answer, gold, right in [
        ("the vertex is (1, 2)", "(1,2)", True),
        ("The points are (1,2) and (3,4).", "(3,4)", False),
        (r"\text{Answer: } 9", "9", True),
        ("all reals", r"(-\infty,\infty)", True),
        ("No solutions", r"\text{no solution}", True),
        ("does not exist", r"\text{DNE}", True),
        ("3 : 4", "3:4", True),
        ("3:45 PM", r"3:45\text{ p.m.}", True),
        ("It is not 5", "5", False),
    ]:
        assert verifier.verify(answer, gold).correct == right, (answer, gold)


def test_each_reason_is_given_where_it_belongs(verifier):
    gold = r"\frac{1}{2}"
    for completion, reason, by in [
        (boxed(r"\frac12"), "correct", "string"),
        (boxed("0.50"), "correct", "number"),
        (boxed(r"2^{-1}"), "correct", "number"),
        (boxed(r"\sin 30^\circ"), "correct", "symbol"),
        (boxed("2"), "wrong", "number"),
        (boxed(r"\sqrt{2}"), "wrong", "symbol"),
        ("I cannot say.", "no_answer", "extraction"),
        (r"It is \boxed{ }, or 3.", "no_answer", "extraction"),
        (boxed(r"1 +* \frac{}{}"), "unparsable", "symbol"),
        (boxed("9^{9^{9}}"), "refused_bomb", "screen"),
    ]:
        verdict = verifier.verify(completion, gold)
        assert (verdict.reason, verdict.by) == (reason, by), (completion, verdict)
        assert verdict.reward == float(reason == "correct") and verdict.detail
    with Verifier(workers=1, timeout=0.3) as hasty:
        verdict = hasty.verify(SLOW, gold)
        assert (verdict.reason, verdict.by, verdict.reward) == ("timeout", "symbol", 0.0)
        assert hasty.counts() == {reason: int(reason == "timeout") for reason in REASONS} | {
            "cached": 0,
            "workers_killed": 1,
        }


def test_hostile_answers_are_decided_within_a_second_from_a_thread():
    seconds, verdicts = [], []  # CPU seconds: of this thread and of the worker

    def work():
        with Verifier(workers=1, cache_size=1) as own:
            for answer in HOSTILE:
                started = time.thread_time()
                verdicts.append(own.verify(boxed(answer), "1/2"))
                seconds.append(time.thread_time() - started + verdicts[-1].cpu_seconds)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(verdicts) == len(HOSTILE)
    assert all(verdict.reason in REASONS and not verdict.correct for verdict in verdicts)
    assert max(seconds) < 1.0, HOSTILE[seconds.index(max(seconds))][:60]
    assert sorted(seconds)[len(seconds) // 2] < 0.1


def test_hostile_answers_from_asyncio_leave_the_loop_running():
    gaps = []

    async def tick():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            gaps.append(time.perf_counter() - before)

    async def main():
        ticker = asyncio.create_task(tick())
        with Verifier(workers=2, lazy=True) as verifier:
            one = await asyncio.gather(
                *(verifier.verify_async(boxed(answer), "1/2") for answer in HOSTILE)
            )
            batch = await verifier.verify_batch_async(
                [boxed(answer) for answer in HOSTILE], ["1/2"] * len(HOSTILE)
            )
        ticker.cancel()
        return one, batch

    one, batch = asyncio.run(main())
    assert one == batch
    assert not any(verdict.correct for verdict in one)
    assert max(gaps) < 0.5  # the loop ran on while workers were stuck


def test_a_killed_worker_costs_no_answer():
    answers = [rf"\sqrt{{{n * n}}}+x-x" for n in range(2, 1002)]
    golds = [str(n if n % 3 else n + 1) for n in range(2, 1002)]
    results = []
    # The first death is forgiven once an answer: a second kill of the same answer's worker would
    # end in a refusal.
    with Verifier(workers=2, timeout=30) as verifier:
        thread = threading.Thread(
            target=lambda: results.extend(verifier.verify_batch(list(map(boxed, answers)), golds))
        )
        thread.start()
        kills = 0
        while kills < 2 and thread.is_alive():
            time.sleep(0.3)
            for pid in workers_of(verifier)[1][:1]:
                with contextlib.suppress(ProcessLookupError):  # it has just been replaced
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
        thread.join()
    assert kills == 2
    assert [verdict.correct for verdict in results] == [n % 3 != 0 for n in range(2, 1002)]


def test_a_killed_fork_server_is_replaced():
    with Verifier(workers=1, timeout=5) as verifier:
        assert verifier.verify(boxed(r"\sqrt{4}+x-x"), "2").correct
        server, workers = workers_of(verifier)
        os.kill(server, signal.SIGKILL)
        assert gone([server, *workers])
        assert verifier.verify(boxed(r"\sqrt{9}+x-x"), "3").correct
        assert workers_of(verifier)[0] != server


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_a_worker_that_asks_for_too_much_memory_is_refused_it():
    limit = 160 << 20
    with Verifier(workers=1, timeout=60, memory_bytes=limit, limits=UNLIMITED) as verifier:
        for pid in workers_of(verifier)[1]:
            assert psutil.Process(pid).rlimit(psutil.RLIMIT_AS) == (limit, limit)
        bomb = verifier.verify(
            boxed(r"\int_0^1 2^{2^{31}} x\,dx"), r"\int_0^1 2^{2^{31}}\,dx"
        )  # 256 MiB when written out
        assert (bomb.reason, bomb.by) == ("refused_bomb", "symbol")
        assert "memory" in bomb.detail
        assert verifier.verify(boxed(r"\sqrt{4}+x-x"), "2").correct


def test_equal_inputs_give_the_same_verdict_from_the_cache(verifier):
    first = verifier.verify(boxed(r"\sqrt{50}"), r"5\sqrt{2}")
    before = verifier.counts()["cached"]
    again = verifier.verify("Another text, " + boxed(r"\sqrt{50}"), r"5\sqrt{2}")
    assert first == again and verifier.counts()["cached"] == before + 1
    with Verifier(workers=1, timeout=0.3) as hasty:
        timed_out = hasty.verify(SLOW, "7")
        assert hasty.verify(SLOW, "7") is timed_out and hasty.counts()["workers_killed"] == 1


def test_no_reply_on_a_loaded_machine_is_undecided_after_a_second_try_and_never_cached(monkeypatch):
    tries = []

    def starved(self, job, seconds, backstop):
        tries.append(backstop)
        raise pool.Unanswered

    with Verifier(workers=1, timeout=0.3) as verifier:
        with monkeypatch.context() as patch:
            patch.setattr(pool.Worker, "ask", starved)
            verdict = verifier.verify(boxed(r"\sqrt{50}"), r"5\sqrt{2}")
        assert (verdict.reason, verdict.reward, len(tries)) == ("undecided", 0.0, 2)
        assert verifier.counts()["undecided"] == 1
        assert verifier.verify(boxed(r"\sqrt{50}"), r"5\sqrt{2}").correct


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells another process's CPU time")
def test_other_processes_time_is_not_counted_against_an_answer():
    with Verifier(workers=1, timeout=0.2) as verifier:
        assert verifier.verify(boxed(r"\sqrt{8}"), r"2\sqrt{2}").correct
        (pid,) = workers_of(verifier)[1]
        os.kill(pid, signal.SIGSTOP)  # the machine gives it no time for three limits
        threading.Timer(0.6, os.kill, (pid, signal.SIGCONT)).start()
        verdict = verifier.verify(boxed(r"\sqrt{18}"), r"3\sqrt{2}")
        assert verdict.correct and verdict.cpu_seconds < 0.2
        assert verifier.counts()["workers_killed"] == 0


def test_verdicts_are_the_same_while_all_cores_are_busy():
    pairs = [(r"\sqrt{50}", r"5\sqrt{2}"), ("x^2-1", "(x-1)(x+1)"), ("y=x^2", "x^2-y=0")]
    pairs += [
        ("xy=1", r"y=\frac{1}{x}"),
        ("x^2<4", "-2<x<2"),
        (r"\sin 2x", r"2\sin x"),
        ("x+1", "x"),
    ]
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with Verifier(workers=2) as verifier:
            verdicts = [verifier.verify(boxed(answer), gold) for gold, answer in pairs]
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert [v.reason for v in verdicts] == ["correct"] * 5 + ["wrong"] * 2


def test_a_verdict_carries_the_type_and_the_rule_that_decided(verifier):
    for gold, answer, kind in [
        (r"\frac{1}{2}", "0.5", "number"),
        (r"5\text{ cm}", "6 cm", "quantity"),
        (r"30^\circ", "30", "angle"),
        ("(1,2]", "1<x\\le 2", "interval"),
        (r"\{1,2\}", "2,1", "set"),
        ("(1,2)", "(2,1)", "tuple"),
        ("y=x^2", "x^2=y", "equation"),
        (r"t\ge 2", r"2\le t", "inequality"),
        ("f(x)=2x", "f(t)=2t", "function"),
        (r"\text{(C)}", "D", "choice"),
        (r"\text{Evelyn}", "Bob", "text"),
    ]:
        verdict = verifier.verify(boxed(answer), gold)
        assert (verdict.type, verdict.rule) == (kind, RULES[kind]), (gold, verdict)


SIDES = st.sampled_from(
    [
        pair
        for kind, cases in KINDS.items()
        if kind != "gold in a box"  # a completion, not an answer
        for pair in cases["equal"] + cases["different"]
    ]
)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
def test_a_verdict_does_not_depend_on_the_order_of_the_pair(verifier, one, other):
    for gold, answer in (one, (one[0], other[1])):
        if "box" in gold + answer:
            continue
        straight = verifier.verify(boxed(answer), gold)
        swapped = verifier.verify(boxed(gold), answer)
        assert straight.correct == swapped.correct, (gold, answer, straight, swapped)


def test_the_cache_forgets_the_least_recently_used():
    with Verifier(workers=1, lazy=True, cache_size=2) as verifier:
        for answer in ("1", "2", "1", "3", "1", "2"):
            verifier.verify(boxed(answer), "1")
        assert verifier.counts()["cached"] == 2  # both later 1s; the 2 was pushed out by the 3


def test_a_batch_keeps_its_order_and_decides_equal_pairs_once(verifier):
    before = sum(verifier.counts()[reason] for reason in REASONS)
    completions = [boxed(rf"\sqrt{{{n * n}}}+1+x-x") for n in (3, 1, 2, 3, 1)] + [
        "none at all",
        boxed("3"),
    ]
    verdicts = verifier.verify_batch(completions, ["4", "2", "9", "4", "3", "4", "3"])
    assert [verdict.reason for verdict in verdicts] == [
        "correct",
        "correct",
        "wrong",
        "correct",
        "wrong",
        "no_answer",
        "correct",
    ]
    assert verdicts[0] is verdicts[3]
    assert sum(verifier.counts()[reason] for reason in REASONS) == before + 7
    assert verifier.verify_batch([], []) == []


def test_many_threads_share_one_verifier(verifier):
    wrong = []

    def work(k):
        for n in range(k, k + 12):
            if verifier.verify(
                boxed(rf"\sqrt{{{n * n}}}+x-x"), str(n if n % 2 else n + 1)
            ).correct != (n % 2 == 1):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_interrupt_does_not_mix_up_replies(monkeypatch):
    with Verifier(workers=1, timeout=5) as verifier:
        original = pool.Worker.line

        def interrupted(self, deadline):
            monkeypatch.setattr(pool.Worker, "line", original)
            raise KeyboardInterrupt

        monkeypatch.setattr(pool.Worker, "line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verifier.verify(boxed(r"\sqrt{5}"), "2")
        assert not verifier.verify(boxed(r"\sqrt{16}+x-x"), "2").correct
        assert verifier.verify(boxed(r"\sqrt{4}+x-x"), "2").correct


def test_cheap_answers_start_no_process():
    with Verifier(lazy=True) as verifier:
        assert verifier.verify(boxed(r"\frac{2}{4}"), "0.5").correct
        assert not verifier.verify(boxed("9**9**9**9"), "0.5").correct
        assert not verifier._live
        started = time.perf_counter()
        for n in range(2_000):
            verifier.verify(boxed(f"{2 * n}/2"), str(n))
        assert (time.perf_counter() - started) / 2_000 < 0.002


def test_bad_input_is_named(verifier):
    for completion, gold, error, message in [
        (None, "1", TypeError, "completion is NoneType, not a string"),
        (b"1", "1", TypeError, "completion is bytes"),
        ("1", 142.0, TypeError, r"gold is float \(142.0\), not a string: pass str"),
        ("1", None, TypeError, "gold is NoneType"),
        ("1", "", ValueError, "gold is empty"),
        ("1", " \n", ValueError, "gold is empty"),
    ]:
        with pytest.raises(error, match=message):
            verifier.verify(completion, gold)
    with pytest.raises(TypeError, match=r"gold\[1\] is int"):
        verifier.verify_batch(["1", "2"], ["1", 2])
    with pytest.raises(ValueError, match="2 completions but 1 golds"):
        verifier.verify_batch(["1", "2"], ["1"])
    with pytest.raises(TypeError, match="sequences of strings"):
        verifier.verify_batch("12", ["1", "2"])
    for bad in ({"workers": 0}, {"timeout": 0}, {"memory_bytes": 1 << 20}, {"cache_size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Verifier(lazy=True, **bad)


def test_closing_ends_all_processes_and_later_use_is_refused():
    verifier = Verifier(workers=2)
    _, workers = workers_of(verifier)
    assert len(workers) == 2
    verifier.close()
    verifier.close()
    assert gone(
        workers
    )  # the fork server is shared and ends with the last verifier: see the fork below
    with pytest.raises(VerifierClosed, match="make another"):
        verifier.verify(boxed("1"), "1")


SCRIPT = """
import sys, time
from moxin_lab.verifier.verifier import Verifier
from moxin_lab.verifier.compare import RULES
from moxin_lab.verifier.pool import acquire
verifier = Verifier(workers=2, timeout=30)   # no guard for the main module, and never closed
pids = [acquire(id(verifier)).process.pid, *[worker.pid for worker in verifier._live]]
print(verifier.verify(r"\\boxed{\\sqrt{4}}", "2").reason, *pids, flush=True)
if sys.argv[1] == "busy":                            # both workers stuck while the owner is killed
    import threading
    for n in ("1700", "1800"):
        slow = r"\\boxed{\\int_0^{N} \\frac{\\sin(x^x)}{\\ln(1+x^{x^x})}\\,dx}".replace("N", n)
        threading.Thread(target=verifier.verify, args=(slow, "1"), daemon=True).start()
    time.sleep(60)
"""


def test_no_process_outlives_an_owner_that_ends_or_is_killed():
    owners = {
        ending: subprocess.Popen(
            [sys.executable, "-c", SCRIPT, ending], stdout=subprocess.PIPE, text=True
        )
        for ending in ("exit", "busy")
    }
    try:
        for ending, owner in owners.items():
            reason, *pids = owner.stdout.readline().split()
            assert reason == "correct" and len(pids) == 3, ending
            if ending == "busy":
                time.sleep(0.3)
                owner.kill()
            owner.wait(30)
            assert gone([int(pid) for pid in pids]), ending
    finally:
        for owner in owners.values():
            owner.kill()
            owner.wait()
            owner.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_fork_of_the_owner_gets_processes_of_its_own_and_the_last_verifier_closed_ends_them(
    verifier,
):
    assert verifier.verify(boxed(r"\sqrt{4}+x-x"), "2").correct
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            right = (
                verifier.verify(boxed(r"\sqrt{121}+x-x"), "11").correct
                and not verifier.verify(boxed(r"\sqrt{5}"), "11").correct
            )
            server, workers = workers_of(verifier)
            verifier.close()
            os._exit(0 if right and gone([server, *workers]) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert verifier.verify(boxed(r"\sqrt{169}+x-x"), "13").correct


PIECES = st.sampled_from(
    [
        "\\frac{",
        "{",
        "}",
        "\\sqrt{",
        "(",
        ")",
        "[",
        "]",
        "^",
        "_",
        "!",
        "9",
        "12",
        "x",
        "y",
        "+",
        "-",
        "*",
        "/",
        "=",
        "<",
        ",",
        "|",
    ]
    + [
        "\\pi",
        "\\infty",
        "\\cup",
        "\\pm",
        "\\sin",
        "\\log",
        "\\text{cm}",
        "%",
        "\\sum_{k=1}^{9}",
        "\\binom",
        "\\int",
        "\\in",
        "\\{",
        "\\}",
    ]
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(PIECES, min_size=1, max_size=14).map("".join),
    st.sampled_from(["\\frac{1}{2}", "x^2+1", "(1,2]", "1,2", "y=x"]),
)
def test_every_text_gets_a_verdict_in_time(verifier, answer, gold):
    started = time.perf_counter()
    verdict = (
        verifier.verify("\\boxed{" + answer, gold)
        if answer.count("{") < answer.count("}")
        else verifier.verify(answer, gold)
    )
    assert isinstance(verdict, Verdict) and verdict.reason in REASONS
    assert time.perf_counter() - started < 2.0
