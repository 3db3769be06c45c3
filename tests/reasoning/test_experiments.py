"""Guarantees of reasoning: unbiased pass@k, tables, equal compute, parts apart, and a whole run on
a model of three blocks.
"""

import itertools
import json
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moxin_lab import scales
from moxin_lab.evaluation import statistics
from moxin_lab.model import convert
from moxin_lab.posttraining import chat
from moxin_lab.posttraining import experiments as tuning
from moxin_lab.reasoning import answers, datasets, experiments, figures, staleness, tasks
from moxin_lab.reasoning.tasks import Task
from moxin_lab.scales import sections
from moxin_lab.scales.sections import GRPOSettings
from moxin_lab.verifier.extraction import BOX_AT_END
from moxin_lab.verifier.verifier import Verifier
from tests.posttraining.examples import make_model, make_tokenizer

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1, lazy=True) as found:
        yield found


@given(
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_with_a_right_one(case):
    samples, right, k = case
    outcomes = [True] * right + [False] * (samples - right)
    expected = np.mean([any(choice) for choice in itertools.combinations(outcomes, k)])
    assert math.isclose(answers.pass_at_k(right, samples, k).item(), expected, abs_tol=1e-12)


def test_pass_at_k_refuses_more_than_there_are_samples():
    with pytest.raises(ValueError, match="pass@9 needs"):
        answers.pass_at_k([3, 4], 8, 9)


def completions(right, group="in-family", start=0):
    rows = [
        {
            "group": group,
            "item": start + item,
            "sample": sample,
            "right": value,
            "reason": "correct" if value else "wrong",
        }
        for item, values in enumerate(right)
        for sample, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_tables_take_the_question_as_the_unit_and_pair_by_question():
    weak = pd.concat([completions([[1, 0], [0, 0]]), completions([[0, 0]], "harder", 2)])
    strong = pd.concat([completions([[1, 1], [1, 0]]), completions([[0, 0]], "harder", 2)])
    found = {"majority": weak[weak["sample"] == 0], "weak": weak, "strong": strong}
    passed = answers.pass_table(found, (1, 2), statistics.bootstrap_interval).set_index(
        ["model", "group", "k"]
    )
    assert passed.loc[("weak", "in-family", 1), "value"] == 0.25
    assert passed.loc[("strong", "in-family", 2), "value"] == 1.0
    assert passed.loc[("weak", "in-family", 1), "items"] == 2
    assert ("majority", "in-family", 2) not in passed.index
    different = answers.difference_table(
        found, [("strong", "weak")], (1,), statistics.paired_bootstrap
    )
    assert different.set_index("group").loc["in-family", "value"] == 0.5
    assert list(answers.wide(passed.reset_index()).columns) == ["in-family", "harder"]
    counts = answers.reasons(found)
    assert counts.loc["correct", "strong"] == 3
    assert "timeout" not in counts.index  # a reason that no completion got has no row
    seeds = answers.seed_table({7: {"CoT-SFT": weak, "GRPO": strong}}, statistics.paired_bootstrap)
    assert seeds[seeds["group"] == "in-family"]["gain"].tolist() == [0.5]


def test_the_compute_of_grpo_is_counted_by_hand():
    grpo = scales.load("tiny").reasoning.grpo.model_copy(
        update={"prompts_per_step": 2, "num_generations": 4}
    )
    settings = scales.load("tiny").reasoning.model_copy(update={"grpo": grpo})
    log = pd.DataFrame({"num_tokens": [80.0], "completions/mean_length": [10.0]})
    # sampling 80 + 2 prompts of 5; reference and training (1 + 3) x 8 rows of 15 tokens
    assert experiments.forward_tokens(log, 5, settings) == 80 + 10 + 4 * 8 * 15


def test_parts_of_a_step_have_their_seconds_and_their_share_of_the_whole_step():
    log = pd.DataFrame(
        {"seconds/rollout": [3.0, 1.0], "seconds/reward": [0.5, 0.5], "seconds/step": [6.0, 4.0]}
    )
    table = experiments.step_seconds(log)
    assert table.index.tolist() == ["rollout", "reward"]
    assert table["seconds"].tolist() == [4.0, 1.0]
    assert table["share"].tolist() == [0.4, 0.1]


def test_the_alternatives_of_the_figures_have_their_numbers():
    log = pd.DataFrame({"reward": [0.1] * 5 + [0.9] * 5, "frac_reward_zero_std": [0.25] * 10})
    text = figures.reward_curve_alt(log)
    assert "Reward over 10 steps: 0.10 in the first fifth, 0.90 in the last" in text
    row = {"model": "GRPO", "group": "harder", "k": 1, "value": 0.25}
    passed = pd.DataFrame([row, {**row, "k": 4, "value": 0.5}])
    assert figures.pass_at_alt(passed) == "GRPO, harder: pass@1 0.25"
    index = pd.MultiIndex.from_tuples([("naive", 4)], names=["objective", "staleness"])
    levels = pd.DataFrame({"pass_at_1": [0.125]}, index=index)
    assert figures.staleness_alt(levels) == "naive, staleness 4: 0.125"


def test_fine_tuning_for_as_long_costs_as_much_within_half_a_step():
    settings = scales.load("tiny").reasoning
    tokens = [
        chat.Encoded(np.arange(length), np.ones(length, dtype=bool), 0) for length in (20, 30, 41)
    ]
    for wanted in (5e3, 1e5):
        repeated, once, spent = experiments.for_as_long(tokens, settings, wanted)
        step = 3 * 29.5 * settings.sft.examples_per_step
        assert once.sft.epochs == 1 and len(repeated) % settings.sft.examples_per_step == 0
        assert abs(spent - wanted) < step / 2 + 3 * 41


@pytest.mark.parametrize("scale", scales.SCALES)
def test_the_scales_grpo_section_is_what_the_trainer_takes(scale):
    section = scales.load(scale).reasoning.grpo
    assert isinstance(section, GRPOSettings)
    changed = {"format_pattern": BOX_AT_END}
    assert GRPOSettings(**(section.model_dump() | changed)) == section.model_copy(update=changed)


def test_the_full_scale_is_moxins_script():
    full = scales.load("full").reasoning
    script = {
        "prompts_per_step": 64,
        "num_generations": 8,
        "temperature": 0.6,
        "learning_rate": 1e-6,
        "max_completion_length": 16384,
        "kl_coef": 0.001,
        "kl_estimator": "k3",
        "reward_values": (0.0, 1.0),
    }
    assert {name: getattr(full.grpo, name) for name in script} == script
    assert (full.sft.epochs, full.sft.learning_rate, full.sft.examples_per_step) == (2, 5e-6, 128)


def test_areals_variant_takes_the_place_of_grpos_values_and_changes_nothing_else():
    full = scales.load("full").reasoning
    variant = experiments.areal(full)
    changed = {
        "steps": 1179,
        "prompts_per_step": 1024,
        "scale_rewards": "batch",
        "baseline": "batch",
        "reward_values": (-5.0, 5.0),
    }
    assert variant.grpo.model_dump() == full.grpo.model_dump() | changed
    assert GRPOSettings(**variant.grpo.model_dump()).reward_values == (-5.0, 5.0)
    completions = [
        settings.grpo.steps * settings.grpo.prompts_per_step for settings in (variant, full)
    ]
    assert abs(completions[0] - completions[1]) < 1024


def test_areals_variant_pays_five_or_takes_five_for_the_same_answers(run, verifier):
    variant = sections.ArealVariant(
        steps=2,
        prompts_per_step=4,
        num_generations=4,
        scale_rewards="batch",
        baseline="batch",
        reward_values=(-5.0, 5.0),
    )
    settings = experiments.areal(run["settings"].model_copy(update={"areal": variant}))
    _, log = experiments.reinforce(
        run["tuned"],
        run["tokenizer"],
        run["asked"].problems,
        verifier,
        settings,
        seed=0,
        folder=run["folder"] / "areal",
    )
    # The first rollout is the one of the run with rewards of 0 and 1.
    assert (log["reward"].iloc[0] + 5) / 10 == pytest.approx(run["log"]["reward"].iloc[0])


def test_a_completion_must_end_in_a_box_to_be_paid():
    import re

    matches = {
        text: re.fullmatch(BOX_AT_END, text, re.DOTALL) is not None
        for text in (
            "1+1=2\n\\boxed{2}",
            "\\boxed{2} \n",
            "2",
            "\\boxed{2} or \\boxed{3",
            "\\boxed{2} so",
        )
    }
    assert list(matches.values()) == [True, True, False, False, False]


def test_the_gate_accepts_what_the_extraction_reads():
    import re

    from moxin_lab.verifier.extraction import extract

    for text in (
        r"\boxed{\frac{1}{2}}",
        "$\\boxed{5}$",
        r"so \boxed{5}.",
        r"\[\boxed{5}\]",
        r"\(\boxed{5}\).",
        r"**\boxed{5}**",
        r"$$\boxed{\left\{1,\sqrt{\frac{1}{\sqrt{2}}}\right\}}$$",
        r"\boxed{\{1,2\}}",
        r"\boxed 5",
        r"\begin{align*}\boxed{5}\end{align*}",
    ):
        assert re.fullmatch(BOX_AT_END, text, re.DOTALL), text
        assert extract(text) is not None, text
    for text in (r"\boxed{5} or 6", r"\boxed{5}{6}", r"\boxed{5}\text{ cm}", "5"):
        assert not re.fullmatch(BOX_AT_END, text, re.DOTALL), text


def tiny(**changes):
    section = scales.load("tiny").reasoning
    grpo = section.grpo.model_copy(
        update={"steps": 2, "prompts_per_step": 4, "num_generations": 4, "micro_batch_examples": 8}
    )
    grpo = grpo.model_copy(update={"max_completion_length": 12})
    sft = section.sft.model_copy(
        update={"epochs": 1, "examples_per_step": 8, "micro_batch_examples": 8, "max_tokens": 300}
    )
    counts = {
        "cot_examples": 24,
        "problems": 16,
        "test_items": 6,
        "num_generations_eval": 4,
        "pass_at": (1, 4),
    }
    return section.model_copy(update={"grpo": grpo, "sft": sft, **counts, **changes})


def test_no_test_question_is_trained_on_and_groups_are_whole():
    asked = experiments.questions(tiny(cot_examples=200, problems=200, test_items=40), seed=1)
    trained = {conversation[0]["content"] for conversation in asked.cot} | {
        task.question for task in asked.problems
    }
    assert len(trained) == 400
    assert not trained & {task.question for task in asked.all_tests()}
    assert list(asked.tests) == list(tasks.GROUPS)
    assert not {task.family for task in asked.tests["new family"]} & {
        task.family for task in asked.problems
    }


def test_at_the_full_scale_a_held_out_problem_is_in_neither_training_set(tmp_path):
    problems = [f"Problem number {place}?" for place in range(60)]
    held = [problem for problem in problems if tasks.part_of(problem) == "test"]
    assert held
    rows = {
        "OPEN_THOUGHTS": [
            {
                "system": "",
                "conversations": [
                    {"from": "user", "value": q},
                    {"from": "assistant", "value": "so 1"},
                ],
            }
            for q in problems
        ],
        "OPEN_R1": [
            {
                "problem": q,
                "answer": "1",
                "generations": ["1"],
                "correctness_math_verify": [True],
                "correctness_llama": None,
            }
            for q in problems
        ],
        "DEEPSCALER": [{"problem": q, "answer": "1", "solution": ""} for q in problems],
    }
    paths = {}
    for name, content in rows.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        paths[getattr(datasets, name)] = str(folder)
    full = scales.load("full").reasoning.model_copy(update={"test_items": 20})
    asked = experiments.questions(full, seed=0, hub_path=paths.__getitem__)
    assert {task.question for task in asked.tests["in-family"]} == set(held)
    asked_in_training = {turn["content"] for conversation in asked.cot for turn in conversation}
    assert not asked_in_training & set(held) and not {
        task.question for task in asked.problems
    } & set(held)
    assert asked.left_out["asks a test question"] == 2 * len(held)


@pytest.fixture(scope="module")
def run(tmp_path_factory, verifier):
    """The stage's calls on a model of three blocks."""
    folder = tmp_path_factory.mktemp("reasoning")
    tokenizer, settings = make_tokenizer(), tiny()
    start = folder / "start"
    convert.save_pretrained(make_model(), start)
    asked = experiments.questions(settings, seed=0)
    encoded, _ = experiments.encode(asked.cot, tokenizer, settings)
    options = {"seed": 0, "folder": folder / "cot", "pad_id": tokenizer.pad_token_id}
    tuned, cot_log = tuning.fine_tune(start, encoded, settings, **options)
    trained, log = experiments.reinforce(
        tuned, tokenizer, asked.problems, verifier, settings, seed=0, folder=folder / "grpo"
    )
    found = answers.answer(trained, tokenizer, asked.tests, verifier, settings=settings, seed=0)
    return {
        "asked": asked,
        "tuned": tuned,
        "trained": trained,
        "log": log,
        "cot_log": cot_log,
        "found": found,
        "tokenizer": tokenizer,
        "settings": settings,
        "start": start,
        "encoded": encoded,
        "folder": folder,
    }


def test_a_run_judges_every_sample_of_every_question(run):
    found, asked, settings = run["found"], run["asked"], run["settings"]
    assert len(found) == len(asked.all_tests()) * settings.num_generations_eval
    assert found["tokens"].between(1, settings.grpo.max_completion_length).all()
    assert (
        found["reason"].notna().all() and (found["right"] == (found["reason"] == "correct")).all()
    )
    assert len(run["log"]) == settings.grpo.steps and "verifier/wrong" in run["log"]
    assert len(answers.samples(asked.tests, {"GRPO": found}, each=2)) == 2 * len(asked.tests)


def test_grpo_leaves_the_model_that_it_starts_from_as_it_was(run):
    again, _ = tuning.fine_tune(
        run["start"],
        run["encoded"],
        run["settings"],
        seed=0,
        folder=run["folder"] / "again",
        pad_id=run["tokenizer"].pad_token_id,
    )
    for (name, a), (_, b) in zip(
        again.state_dict().items(), run["tuned"].state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_another_seed_is_judged_on_the_same_questions_and_seeds_repeat(run):
    arguments = (run["start"], run["encoded"], run["asked"], run["tokenizer"], run["settings"])
    first = experiments.repeat(*arguments, seed=0, folder=run["folder"] / "repeat0")
    pd.testing.assert_frame_equal(first["GRPO"], run["found"])
    other = experiments.repeat(*arguments, seed=1, folder=run["folder"] / "repeat1")
    assert other["GRPO"]["item"].tolist() == first["GRPO"]["item"].tolist()
    assert other["GRPO"]["text"].tolist() != first["GRPO"]["text"].tolist()


def test_the_staleness_grid_has_one_run_per_combination_and_its_figures_are_drawn(run):
    experiment = sections.StalenessExperiment(
        levels=(0, 1), steps=2, prompts_per_step=2, learning_rate=1e-3, seeds=3
    )
    settings = run["settings"].model_copy(update={"staleness_experiment": experiment})
    running = staleness.start_runs(
        run["tuned"],
        run["tokenizer"],
        run["asked"],
        settings,
        seed=0,
        folder=run["folder"] / "grid",
    )
    grid = staleness.joined(running.results())
    ends = staleness.staleness_ends(grid)
    assert (
        len(ends) == 2 * 2 * 3
        and ends["times_faster"].ge(0.99).all()
        and ends["pass_at_1"].between(0, 1).all()
    )
    passed = answers.pass_table({"GRPO": run["found"]}, (1, 4), statistics.bootstrap_interval)
    for figure in (
        figures.staleness(ends),
        figures.pass_at(passed),
        figures.reward_curve(run["log"]),
    ):
        figure.canvas.draw()
        titles = (
            "left",
            "center",
        )  # the house's style, once another test has set it, puts titles on the left
        named = [
            axis.get_xlabel() or axis.get_ylabel() or "".join(map(axis.get_title, titles))
            for axis in figure.axes
        ]
        assert all(named)
    matplotlib.pyplot.close("all")


def test_the_staleness_table_compares_objectives_and_levels_at_equal_seeds():
    shares = {"naive": (0.2, 0.4, 0.6), "decoupled": (0.3, 0.5, 0.7)}
    rows = [
        {
            "staleness": level,
            "objective": objective,
            "seed": seed,
            "pass_at_1": right - level / 10,
            "times_faster": 1.0 + level,
        }
        for level in (0, 2)
        for objective, values in shares.items()
        for seed, right in enumerate(values)
    ]
    table = staleness.staleness_table(pd.DataFrame(rows), statistics.seed_interval)
    assert (
        table.loc[("naive", 2), "pass_at_1"] == pytest.approx(0.2)
        and table.loc[("naive", 2), "times_faster"] == 3
    )
    for row, difference in (("decoupled - naive", 0.1), ("naive - naive at 0", -0.2)):
        gap = table.loc[(row, 2)]
        assert gap[["pass_at_1", "low", "high"]].tolist() == pytest.approx([difference] * 3)
        assert np.isnan(gap["times_faster"])
    assert ("naive - naive at 0", 0) not in table.index
    spread = 0.2 * 4.302653 / 3**0.5  # Student's quantile of 2 degrees of freedom
    assert table.loc[("decoupled", 0), "low"] == pytest.approx(0.5 - spread, abs=1e-6)


def test_a_task_without_a_trace_is_not_taken_for_a_chain():
    with pytest.raises(ValueError, match="has no trace"):
        Task("deepscaler", "P?", "1").conversation()
