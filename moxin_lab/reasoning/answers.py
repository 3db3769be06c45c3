"""Sampled answers of stage 06 and what is computed from them: pass@k, differences, tables.

    model ─ answer ─► one row per completion, judged ─ pass_table, difference_table ─► tables

Guarantees: sampled answers depend on weights, question and seed alone; pass@k is the unbiased
estimate from all samples.
Out of scope: training; computing intervals (the caller passes them in).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining import tables
from moxin_lab.posttraining.prompts import encode_prompt
from moxin_lab.reasoning.ring_engine import RingEngine, engine_options
from moxin_lab.reasoning.rollout import SamplingSettings
from moxin_lab.reasoning.tasks import GROUPS, Task, judge, majority_answers, shown_question
from moxin_lab.scales.sections import ReasoningSettings
from moxin_lab.verifier import kinds_table
from moxin_lab.verifier.verifier import REASONS, Verifier


def answer(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tests: Mapping[str, Sequence[Task]],
    verifier: Verifier,
    *,
    settings: ReasoningSettings,
    seed: int,
) -> pd.DataFrame:
    """`settings.num_generations_eval` sampled completions of each test question, judged. One row
    per completion: `group`, `family`, `item` (index among all tests), `sample`, `text`, `answer`
    (as extracted), `reason`, `right`, `tokens`, `ended`.
    """
    tasks = [task for group in tests.values() for task in group]
    sampling = SamplingSettings(
        num_generations=settings.num_generations_eval,
        max_completion_length=settings.grpo.max_completion_length,
        temperature=settings.grpo.temperature,
    )
    engine = RingEngine(
        model,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_rows=settings.answer_rows,
        **engine_options(settings.decoding),
    )
    rollout = engine.generate(
        [encode_prompt(task.prompt(), tokenizer) for task in tasks], sampling, seed
    )
    ended = [reason == "eos" for reason in rollout.finish_reasons]
    return judged(
        rollout.texts(tokenizer), tests, verifier, num_generations=settings.num_generations_eval
    ).assign(tokens=rollout.lengths.numpy(), ended=ended)


def answer_all(
    models: Mapping[str, MoxinForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    asked: Any,
    verifier: Verifier,
    *,
    settings: ReasoningSettings,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """`answer` of each model on the same questions, after the majority answers of the training
    problems, one of each question. asked: `experiments.Questions`.
    """
    common = majority_answers(asked.problems, asked.all_tests())
    found = {"majority": judged(common, asked.tests, verifier, num_generations=1)}
    for index, (name, model) in enumerate(models.items()):
        if progress is not None:
            progress(index, len(models), f"answers of {name}")
        found[name] = answer(model, tokenizer, asked.tests, verifier, settings=settings, seed=seed)
    return found


def judged_examples(verifier: Verifier, more: Sequence[str] = ()) -> pd.DataFrame:
    """Ten completions of one question, some of them hostile, then `more`, and the verifier's
    judgement of each.
    """
    question = "Find the Greatest Common Divisor (GCD) of these numbers: 12, 8."
    completions = [r"12%8=4 8%4=0 \boxed{4}", r"\boxed{\frac{8}{2}}", r"\boxed{4.0}"]
    completions += ["The GCD is 4.", r"\boxed{8}", "I do not know.", r"\boxed{}"]
    completions += [r"\boxed{9^{9^{9}}}", r"\boxed{(10**9)!}", r"\boxed{+/4(}", *more]
    found = judge(verifier, completions, [Task("gcd", question, "4")] * len(completions))
    rows = [(verdict.reason, verdict.by, verdict.reward) for verdict in found]
    index = pd.Index(completions, name="completion")
    return pd.DataFrame(rows, index=index, columns=["reason", "decided by", "reward"])


def kinds_of_answers() -> pd.DataFrame:
    """The verifier's types of answers, with an equal pair of each and what decides it."""
    kinds = pd.DataFrame(kinds_table()).set_index("type")
    kinds["example"] = kinds["example"].str.replace(" | ", " and ", regex=False)
    return kinds


def judged(
    texts: Sequence[str],
    tests: Mapping[str, Sequence[Task]],
    verifier: Verifier,
    *,
    num_generations: int,
) -> pd.DataFrame:
    """`answer`'s columns without lengths for given texts, `num_generations` in a row for
    each test question.
    """
    places = [
        (group, task)
        for group, tasks in tests.items()
        for task in tasks
        for _ in range(num_generations)
    ]
    verdicts = judge(verifier, texts, [task for _, task in places])
    return pd.DataFrame(
        {
            "group": [group for group, _ in places],
            "family": [task.family for _, task in places],
            "item": np.arange(len(places)) // num_generations,
            "sample": np.arange(len(places)) % num_generations,
            "text": list(texts),
            "answer": [verdict.answer for verdict in verdicts],
            "reason": [verdict.reason for verdict in verdicts],
            "right": [verdict.correct for verdict in verdicts],
        }
    )


def pass_at_k(right: Any, samples: Any, k: int) -> np.ndarray:
    """Chance that at least one of k completions is right, an item, from `right` of `samples`
    sampled ones; float64.

    1 - C(n - c, k) / C(n, k), unbiased for k <= n (Chen et al. 2021, arXiv 2107.03374, section
    2.1). Raises ValueError for k > n.
    """
    counts, totals = np.broadcast_arrays(
        np.asarray(right, dtype=np.int64), np.asarray(samples, dtype=np.int64)
    )
    if k < 1 or (totals < k).any() or (counts < 0).any() or (counts > totals).any():
        raise ValueError(
            f"pass@{k} needs 1 <= k <= samples and 0 <= right <= samples; there are {totals.min()} "
            "samples"
        )
    return np.array(
        [
            1 - math.comb(n - c, k) / math.comb(n, k)
            for c, n in zip(counts.flat, totals.flat, strict=True)
        ]
    )


def items(found: pd.DataFrame, k: int) -> pd.Series:
    """pass@k of each item, in the order of the tests, indexed by (group, item)."""
    grouped = found.groupby(["group", "item"], sort=False)["right"]
    counts = grouped.agg(["sum", "size"])
    return pd.Series(pass_at_k(counts["sum"], counts["size"], k), index=counts.index)


def pass_table(
    found: Mapping[str, pd.DataFrame], ks: Sequence[int], interval: Callable[[Any], Any]
) -> pd.DataFrame:
    """pass@k by model, group and k with `interval(values of items)`: columns model, group, k,
    value, low, high, items. A model with fewer than k samples an item (the majority answer has one)
    has no row for k.
    """
    rows = []
    for model, frame in found.items():
        for k in ks:
            if frame["sample"].max() + 1 < k:
                continue
            values = items(frame, k)
            for group in values.index.unique("group"):
                chosen = values[group]
                rows.append(
                    {
                        "model": model,
                        "group": group,
                        "k": k,
                        **interval(chosen.to_numpy())._asdict(),
                        "items": len(chosen),
                    }
                )
    return pd.DataFrame(rows)


def difference_table(
    found: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    ks: Sequence[int],
    paired: Callable[[Any, Any], Any],
) -> pd.DataFrame:
    """First minus second of each pair on the same items with `paired(first, second)`: columns
    first, second, group, k, value, low, high.
    """
    rows = []
    for first, second in pairs:
        for k in ks:
            if min(found[name]["sample"].max() + 1 for name in (first, second)) < k:
                continue
            a, b = items(found[first], k), items(found[second], k)
            for group in a.index.unique("group"):
                estimate = paired(a[group].to_numpy(), b[group].to_numpy())
                rows.append(
                    {"first": first, "second": second, "group": group, "k": k, **estimate._asdict()}
                )
    return pd.DataFrame(rows)


def seed_table(
    by_seed: Mapping[int, Mapping[str, pd.DataFrame]], paired: Callable[[Any, Any], Any]
) -> pd.DataFrame:
    """pass@1 of `CoT-SFT` and `GRPO` by seed and group, the gain, and `paired`'s interval of it
    over questions.
    """
    rows = []
    for seed, found in by_seed.items():
        before, after = items(found["CoT-SFT"], 1), items(found["GRPO"], 1)
        for group in before.index.unique("group"):
            estimate = paired(after[group].to_numpy(), before[group].to_numpy())
            shares = {"CoT-SFT": before[group].mean(), "GRPO": after[group].mean()}
            gain = {"gain": estimate.value, "low": estimate.low, "high": estimate.high}
            rows.append({"seed": seed, "group": group, **shares, **gain})
    return pd.DataFrame(rows).set_index("seed")


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """`pass_table` for readers: one row per model and k, one column per group, as text with the
    interval.
    """
    text = [f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in table.itertuples()]
    shown = table.assign(
        text=text, label=[f"{row.model}, pass@{row.k}" for row in table.itertuples()]
    )
    rows = shown.pivot(index="label", columns="group", values="text")
    groups = [group for group in GROUPS if group in rows]
    return rows.loc[list(dict.fromkeys(shown["label"])), groups].rename_axis("model")


def gain_in_words(by_pair: pd.DataFrame) -> str:
    """GRPO in the trained families against its start, and against the same compute of fine-tuning;
    its pass@k at the largest k against its start. by_pair: `difference_table` indexed by first,
    second, group and k.
    """
    gain = by_pair.loc[("GRPO", "CoT-SFT", "in-family", 1)]
    rival = by_pair.loc[("GRPO", "SFT for as long", "in-family", 1)]
    seen = "a difference" if gain["low"] > 0 or gain["high"] < 0 else "no difference seen"
    most = max(by_pair.index.get_level_values("k"))
    wide = by_pair.loc[("GRPO", "CoT-SFT", "in-family", most)]
    of_k = (
        f" pass@{most} changes by {wide['value']:+.3f} ({wide['low']:+.3f} to {wide['high']:+.3f})"
    )
    if gain["low"] > 0 and wide["value"] < 0:
        of_k += ": the model gives its likeliest answers more often, and has no more of them right"
    return (
        f"In the trained families GRPO changes pass@1 by {gain['value']:+.3f} ({gain['low']:+.3f} "
        f"to {gain['high']:+.3f}) from its start: {seen}. Against the same compute spent on more "
        f"fine-tuning it is {rival['value']:+.3f} ({rival['low']:+.3f} to {rival['high']:+.3f})."
        + (f"{of_k}." if most > 1 else "")
    )


def beaten_by_majority(passed: pd.DataFrame, model: str) -> str:
    """In which groups the majority answer has at least the model's pass@1, in a sentence."""
    first = passed[passed["k"] == 1].pivot(index="group", columns="model", values="value")
    groups = [group for group in GROUPS if group in first.index]
    beaten = [group for group in groups if first.loc[group, "majority"] >= first.loc[group, model]]
    if not beaten:
        return f"{model} is above the majority answer's pass@1 in every group."
    values = "; ".join(
        f"{group} {first.loc[group, 'majority']:.3f} against {first.loc[group, model]:.3f}"
        for group in beaten
    )
    return (
        f"The majority answer, which reads no question, does at least as well as {model} in "
        f"{len(beaten)} of {len(groups)} groups: {values}."
    )


def by_family(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Share of correct completions: one row per group and family, one column per model."""
    return pd.DataFrame(
        {
            name: frame.groupby(["group", "family"], sort=False)["right"].mean()
            for name, frame in found.items()
        }
    )


def seeds_in_words(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def gains_over_seeds(seeds: pd.DataFrame, interval: Callable[[Any], Any]) -> pd.DataFrame:
    """Mean gain of each group over the rows of `seed_table`: columns group, mean, low, high, seeds
    and words. Empty for one seed.
    """
    rows = []
    for group, part in seeds.groupby("group", sort=False):
        if len(part) < 2:
            continue
        mean, low, high = interval(part["gain"])
        above = int((part["low"] > 0).sum())
        words = (
            f"{group}: GRPO changes pass@1 by {mean:+.3f} on average ({low:+.3f} to {high:+.3f}, "
            f"Student's 95 % interval over {len(part)} seeds); in {above} of {len(part)} the "
            "interval over questions is above zero."
        )
        rows.append((group, mean, low, high, len(part), words))
    return pd.DataFrame(rows, columns=["group", "mean", "low", "high", "seeds", "words"])


def no_levels() -> pd.DataFrame:
    """An empty `staleness.staleness_table`, where that was not run."""
    index = pd.MultiIndex.from_arrays([[], []], names=["objective", "staleness"])
    return pd.DataFrame(columns=["pass_at_1", "low", "high", "times_faster"], index=index)


def reasons(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many of each model's completions got each of the verifier's reasons that occurred."""
    counts = {name: frame["reason"].value_counts() for name, frame in found.items()}
    every = pd.DataFrame(counts).reindex(list(REASONS)).fillna(0).astype(int).rename_axis("reason")
    return every[every.any(axis="columns")]


def samples(
    tests: Mapping[str, Sequence[Task]], found: Mapping[str, pd.DataFrame], *, each: int
) -> pd.DataFrame:
    """The first `each` questions of each group, unselected, the reference answer, and each model's
    first sample on one line.
    """
    rows, start = [], 0
    for group, tasks in tests.items():
        for place, task in enumerate(tasks[:each]):
            texts = {
                name: frame[(frame["item"] == start + place) & (frame["sample"] == 0)]["text"].iloc[
                    0
                ]
                for name, frame in found.items()
            }
            shown = {
                name: tables.short(text.replace("\n", " ⏎ "), 70) for name, text in texts.items()
            }
            question = shown_question(task, 60)
            rows.append(
                {
                    "group": group,
                    "question": question,
                    "reference": tables.short(task.answer, 24),
                    **shown,
                }
            )
        start += len(tasks)
    return pd.DataFrame(rows).set_index("group")
