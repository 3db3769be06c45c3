"""Guarantees of reasoning/tasks.py, traces.py and datasets.py."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab import scales
from moxin_lab.reasoning import datasets, gym, traces
from moxin_lab.reasoning.tasks import (
    SHARES,
    Task,
    _has_one_answer,
    draw,
    draw_all,
    judge,
    majority_answers,
    part_of,
)
from moxin_lab.verifier.extraction import extract
from moxin_lab.verifier.verifier import Verifier

SMALL = {
    "base_conversion": {"max_value": 200},
    "chain_sum": {"max_terms": 3, "max_digits": 1},
    "count_bits": {"max_n": 500},
    "gcd": {"max_value": 60},
    "simple_equations": {"max_value": 9},
}


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1, lazy=True) as found:
        yield found


@pytest.mark.parametrize("family", sorted(traces.SOLVERS))
def test_every_traces_answer_has_full_marks_from_the_familys_own_scorer(family):
    source = gym.load().create_dataset(family, seed=11, size=150)
    for entry in source:
        if not _has_one_answer(family, entry):
            continue
        answer = extract(traces.trace(family, entry))
        assert answer.how == "boxed"
        assert source.score_answer(answer.text, entry) == 1.0, entry["question"]


@pytest.mark.parametrize("family", sorted(traces.SOLVERS))
def test_every_traces_answer_is_correct_by_the_stages_judge(family, verifier):
    tasks = draw(family, {}, part="rl", count=20, seed=3, traced=True)
    verdicts = judge(verifier, [task.trace for task in tasks], tasks)
    assert {verdict.reason for verdict in verdicts} == {"correct"}


def test_arithmetic_steps_of_traces_hold():
    for family in ("chain_sum", "products", "gcd"):
        for task in draw(family, {}, part="cot", count=40, seed=5, traced=True):
            for line in task.trace.splitlines()[:-1]:
                left, right = line.split("=")
                assert eval(left) == int(right), line


def test_a_simple_equations_trace_reads_all_forms_of_an_equation():
    def trace(equation):
        metadata = {"equation": equation, "variable": "x"}
        return traces.trace("simple_equations", {"metadata": metadata}).splitlines()

    assert trace("3*x + 12 = 45") == ["45-12=33", "33/3=11", r"\boxed{11}"]
    assert trace("56 - 98*x = -1218") == ["-1218-56=-1274", "-1274/-98=13", r"\boxed{13}"]
    assert trace("x - 4 = 3") == ["3+4=7", r"\boxed{7}"]
    assert trace("7 - x = 3") == ["3-7=-4", "-4/-1=4", r"\boxed{4}"]
    assert trace("-x = -8") == ["-8/-1=8", r"\boxed{8}"]


def test_equal_seeds_give_equal_bytes_in_another_process():
    code = (
        "import json;from moxin_lab.reasoning import tasks as r;"
        f"t=r.draw_all({SMALL!r},part='cot',count=60,seed=2,traced=True);"
        "print(json.dumps([[x.question,x.answer,x.trace] for x in t]))"
    )
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    tasks = draw_all(SMALL, part="cot", count=60, seed=2, traced=True)
    assert json.loads(other) == [[task.question, task.answer, task.trace] for task in tasks]
    again = draw_all(SMALL, part="cot", count=60, seed=3, traced=True)
    assert [task.question for task in again] != [task.question for task in tasks]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.lists(st.integers(0, 2**31), min_size=3, max_size=3))
def test_no_question_is_in_two_parts_whatever_the_seeds(family, seeds):
    parts = [
        {
            task.question
            for task in draw(family, SMALL[family], part=part, count=40, seed=seed, traced=False)
        }
        for part, seed in zip(("cot", "rl", "test"), seeds, strict=True)
    ]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


@given(st.text())
def test_a_question_has_one_part_that_white_space_does_not_change(text):
    assert part_of(text) == part_of(f"  {text}\n")


def test_the_parts_have_their_shares():
    found = [part_of(f"question {number}") for number in range(5000)]
    for part, share in SHARES.items():
        assert abs(found.count(part) / 50 - share) < 3


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_the_scales_families_exist_are_disjoint_and_trained_ones_have_solvers(scale):
    chosen = scales.load(scale).reasoning
    assert set(chosen.families) <= set(traces.SOLVERS)
    assert set(chosen.harder) <= set(chosen.families)
    assert not set(chosen.families) & set(chosen.new_families)
    for families in (chosen.families, chosen.harder, chosen.new_families):
        tasks = draw_all(families, part="test", count=4 * len(families), seed=0)
        assert {task.family for task in tasks} == set(families)


def test_a_family_with_few_questions_gives_those_it_has_and_no_question_twice():
    tasks = draw("count_bits", {"max_n": 40}, part="test", count=500, seed=0, traced=False)
    assert 0 < len(tasks) <= 40
    assert len({task.question for task in tasks}) == len(tasks)


def test_unknown_families_difficulties_and_missing_solvers_are_refused():
    with pytest.raises(ValueError, match=r"unknown family 'sudoku'.*chain_sum"):
        draw("sudoku", {}, part="test", count=3, seed=0, traced=False)
    with pytest.raises(ValueError, match=r"reasoning-gym refuses gcd.*max_valu"):
        draw("gcd", {"max_valu": 3}, part="test", count=3, seed=0, traced=False)
    with pytest.raises(ValueError, match="lcm has no solver"):
        draw("lcm", {}, part="cot", count=3, seed=0, traced=True)
    with pytest.raises(ValueError, match="has no trace"):
        Task("lcm", "What?", "3").conversation()


def test_a_scored_family_gives_full_marks_only_and_reasons(verifier):
    task = Task(
        "prime_factorization", "12", "2 × 2 × 3", entry={"answer": "2 × 2 × 3", "metadata": {}}
    )
    completions = [
        r"\boxed{2 × 2 × 3}",
        r"\boxed{12}",
        r"\boxed{two}",
        "no idea",
        r"\boxed{" + "9" * 500 + "}",
    ]
    reasons = [verdict.reason for verdict in judge(verifier, completions, [task] * 5)]
    assert (
        reasons[0] == "correct"
        and reasons[1] == "wrong"
        and reasons[3] == "no_answer"
        and reasons[4] == "wrong"
    )
    assert reasons[2] in ("wrong", "unparsable")


def test_factors_may_be_joined_by_any_multiplication_sign(verifier):
    task = Task("prime_factorization", "172", "2 × 2 × 43", entry={"answer": "2 × 2 × 43"})
    right = [
        r"2 \times 2 \times 43",
        r"2 \cdot 2 \cdot 43",
        "2*2*43",
        "43 x 2 x 2",
        r"2^2 \times 43",
        r"2^{2} \cdot 43",
    ]
    wrong = [r"2 \times 2 \times 41", r"4 \times 43", "172", r"2^3 \times 43"]
    verdicts = judge(verifier, [rf"\boxed{{{a}}}" for a in right + wrong], [task] * 10)
    assert [verdict.correct for verdict in verdicts] == [True] * 6 + [False] * 4


def test_sorted_numbers_must_be_the_numbers_exactly(verifier):
    task = Task("number_sorting", "sort", '["-69.5", "-13", "7"]')
    right = ['["-69.5", "-13", "7"]', "[-69.5, -13, 7]", "['-69.50', '-13', '7.0']"]
    wrong = [
        "[-69.5, -13, 7.9]",
        "[-69.5, -12.1, 7]",
        "[NaN, NaN, NaN]",
        '["nan", "nan", "nan"]',
        "[-Infinity, -13, 7]",
        "[-69.5, 7, -13]",
        "[-69.5, -13]",
        "[-69.5, -13, 1e999999999]",
        "7",
    ]
    verdicts = judge(verifier, [rf"\boxed{{{a}}}" for a in right + wrong], [task] * 12)
    assert [verdict.correct for verdict in verdicts] == [True] * 3 + [False] * 9


def test_a_numeric_answer_is_right_in_any_form_and_verdicts_keep_their_order(verifier):
    number = Task("gcd", "gcd?", "4")
    word = Task(
        "spell_backward", "sun", "nus", entry={"answer": "nus", "metadata": {"word": "sun"}}
    )
    completions = [
        r"\boxed{nus}",
        r"16%4=0 \boxed{4.0}",
        r"\boxed{5}",
        r"\boxed{sun}",
        r"\boxed{\frac{8}{2}}",
    ]
    verdicts = judge(verifier, completions, [word, number, number, word, number])
    assert [verdict.reason for verdict in verdicts] == [
        "correct",
        "correct",
        "wrong",
        "wrong",
        "correct",
    ]
    with pytest.raises(ValueError, match="1 completions but 2 tasks"):
        judge(verifier, ["a"], [word, number])


def test_the_majority_answer_is_the_familys_and_for_a_new_family_that_of_all():
    train = [Task("gcd", str(i), answer) for i, answer in enumerate("1123")] + [
        Task("chain_sum", "x", "7")
    ] * 3
    tests = [Task("gcd", "a", "1"), Task("lcm", "b", "7")]
    assert majority_answers(train, tests) == [r"\boxed{1}", r"\boxed{7}"]


# ---- hub sets, as small local files of their schema


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path.parent)


def test_open_thoughts_rows_become_conversations_and_faults_are_counted(tmp_path):
    turns = [
        {"from": "user", "value": "What is 1+1?"},
        {"from": "assistant", "value": "<|begin_of_thought|>..2"},
    ]
    rows = [
        {"system": "Think.", "conversations": turns},
        {"system": "", "conversations": turns},
        {"system": "Think.", "conversations": turns[:1]},
        {"system": "Think.", "conversations": [turns[0], {"from": "assistant", "value": " "}]},
        {"system": "Think.", "conversations": [turns[0], {"from": "tool", "value": "x"}]},
    ]
    found = datasets.open_thoughts(path=write(tmp_path / "train.jsonl", rows))
    kept = list(found.rows)
    assert [[turn["role"] for turn in one] for one in kept] == [
        ["system", "user", "assistant"],
        ["user", "assistant"],
    ]
    assert kept[0][-1]["content"] == turns[1]["value"]
    assert found.left_out == {"turns out of order": 1, "empty message": 1, "unknown speaker": 1}


def test_open_r1_takes_the_first_generation_called_right(tmp_path):
    common = {
        "problem": "P",
        "solution": "S",
        "answer": "2",
        "generations": ["bad", "good", "better"],
    }
    rows = [
        common | {"correctness_math_verify": [False, True, True], "correctness_llama": None},
        common
        | {
            "correctness_math_verify": [False, False, False],
            "correctness_llama": [False, False, True],
        },
        common | {"correctness_math_verify": [False, False, False], "correctness_llama": None},
    ]
    found = datasets.open_r1(path=write(tmp_path / "train.jsonl", rows))
    assert [one[-1]["content"] for one in found.rows] == ["good", "better"]
    assert found.left_out == {"no generation called right": 1}


def test_deepscaler_rows_become_tasks_that_our_verifier_judges(tmp_path, verifier):
    rows = [
        {"problem": "Half of one?", "answer": r"\frac{1}{2}", "solution": ""},
        {"problem": "Nothing?", "answer": "", "solution": ""},
    ]
    found = datasets.deepscaler(path=write(tmp_path / "train.jsonl", rows))
    tasks = list(found.rows)
    assert [task.answer for task in tasks] == [r"\frac{1}{2}"] and found.left_out == {
        "no answer": 1
    }
    assert judge(verifier, [r"\boxed{0.5}"], tasks)[0].correct


def test_a_set_of_another_schema_is_refused_by_column(tmp_path):
    folder = write(tmp_path / "train.jsonl", [{"question": "a", "answer": "b"}])
    for read in (datasets.open_thoughts, datasets.open_r1, datasets.deepscaler):
        with pytest.raises(datasets.ReasoningSetError, match="missing"):
            read(path=folder)
