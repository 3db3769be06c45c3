"""Figures of stage 06, from plain values to a matplotlib figure.

Guarantees: a function draws the numbers that it is given; it writes no file.
Out of scope: computing the numbers (experiments.py, grpo_trainer.py, asynchronous.py).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moxin_lab.lab.show import PHONE_WIDTH
from moxin_lab.lab.smoothing import centred_mean
from moxin_lab.posttraining.figures import MARKERS
from moxin_lab.reasoning.advantages import centred_rewards

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")


def worked_group(rewards: Sequence[float]) -> Figure:
    """The rewards of one group above, their advantages below, one bar per completion."""
    values = np.array([rewards], dtype=np.float64)
    advantages = centred_rewards(values)[0]
    places = np.arange(1, len(rewards) + 1)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(PHONE_WIDTH, 3.4), sharex=True, height_ratios=(2, 3)
    )
    top.bar(places, rewards, color="#999999")
    top.axhline(values.mean(), color="#000000", linestyle=":", linewidth=1)
    top.annotate(
        f"mean\n{values.mean():.2f}", (len(rewards) + 0.55, values.mean()), va="bottom", fontsize=10
    )
    top.set(ylabel="reward", ylim=(0, max(1.0, float(values.max())) * 1.15))
    bottom.bar(places, advantages, color=np.where(advantages > 0, "#0072B2", "#D55E00"))
    bottom.axhline(0, color="#000000", linewidth=0.8)
    for place, advantage in zip(places, advantages, strict=True):
        above = advantage >= 0
        bottom.annotate(
            f"{advantage:+.2f}",
            (place, advantage),
            xytext=(0, 3 if above else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=10,
        )
    bottom.set(ylabel="advantage", xlabel="completion", xticks=places)
    bottom.margins(y=0.25)
    bottom.set_xlim(0.4, len(rewards) + 1.4)
    return figure


def worked_group_alt(rewards: Sequence[float]) -> str:
    """The figure of `worked_group` in words."""
    advantages = centred_rewards(np.array([rewards], dtype=np.float64))[0]
    return "Bars of reward and advantage by completion: " + ", ".join(
        f"{reward:g} gives {advantage:+.2f}"
        for reward, advantage in zip(rewards, advantages, strict=True)
    )


def worked_group_finding(rewards: Sequence[float]) -> str:
    """What `worked_group` shows, in a sentence for its caption."""
    right = sum(reward > 0 for reward in rewards)
    advantages = centred_rewards(np.array([rewards], dtype=np.float64))[0]
    if not advantages.any():
        return f"{right} of {len(rewards)} completions are right: no spread, so nothing to learn."
    return (
        f"{right} of {len(rewards)} completions are right. Each of these gets an advantage of "
        f"{advantages.max():+.2f}, each other one {advantages.min():+.2f}; the sum is 0."
    )


def reward_curve(log: pd.DataFrame) -> Figure:
    """Mean reward of every rollout with a running mean, the share of groups without variance, and
    below KL and entropy.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(PHONE_WIDTH, 5.4), sharex=True, height_ratios=(3, 2)
    )
    width = max(1, len(log) // 8)
    top.plot(
        log["step"], log["reward"], color="#999999", linewidth=0.9, label="reward, each rollout"
    )
    top.plot(
        log["step"],
        centred_mean(log["reward"], width),
        color="#0072B2",
        label=f"mean of the {width} around it",
    )
    top.plot(
        log["step"],
        log["frac_reward_zero_std"],
        color="#D55E00",
        linestyle="--",
        label="groups without variance (share)",
    )
    top.set(ylabel="reward or share", ylim=(0, 1.02))
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1)
    bottom.plot(log["step"], log["entropy"], color="#009E73", label="entropy, left axis")
    other = bottom.twinx()
    other.plot(
        log["step"],
        log["kl"],
        color="#CC79A7",
        linestyle="--",
        label="KL to the start, right axis",
    )
    bottom.set(xlabel="optimizer step", ylabel="nats per token", ylim=(0, None))
    other.set(ylabel="nats per token", ylim=(0, None))
    lines = [*bottom.get_lines(), *other.get_lines()]
    bottom.legend(
        lines,
        [line.get_label() for line in lines],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        fontsize=10,
    )
    return figure


def reward_finding(log: pd.DataFrame) -> str:
    """What `reward_curve` shows, in a sentence for its caption: means over fifths of the steps."""
    fifth = max(1, len(log) // 5)
    (reward, idle), (reward_at_last, idle_at_last) = (
        part[["reward", "frac_reward_zero_std"]].mean()
        for part in (log.head(fifth), log.tail(fifth))
    )
    return (
        f"GRPO: mean reward {reward:.2f} in the first fifth of {len(log)} steps, "
        f"{reward_at_last:.2f} in the last; {100 * idle:.0f} % of the groups teach nothing at "
        f"first, {100 * idle_at_last:.0f} % at last. Below, entropy and KL to the start."
    )


def reward_curve_alt(log: pd.DataFrame) -> str:
    """The figure of `reward_curve` in words: means over the first and the last fifth."""
    fifth = max(1, len(log) // 5)
    first, last = log.head(fifth), log.tail(fifth)
    return (
        f"Reward over {len(log)} steps: {first['reward'].mean():.2f} in the first fifth, "
        f"{last['reward'].mean():.2f} in the last. Groups without variance: "
        f"{first['frac_reward_zero_std'].mean():.2f} at first, "
        f"{last['frac_reward_zero_std'].mean():.2f} at last."
    )


def pass_at(table: pd.DataFrame) -> Figure:
    """pass@k with intervals: one panel per test group, one row per model, one mark per k. table:
    `reasoning.pass_table`'s columns.
    """
    groups, models = (list(dict.fromkeys(table[name])) for name in ("group", "model"))
    ks = sorted(table["k"].unique())
    size = (PHONE_WIDTH, 1.4 + 0.46 * len(models))
    figure, axes = plt.subplots(
        1, len(groups), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    height_of = {model: len(models) - 1 - i for i, model in enumerate(models)}
    for axis, group in zip(axes[0], groups, strict=True):
        for i, k in enumerate(ks):
            rows = table[(table["group"] == group) & (table["k"] == k)]
            heights = np.array([height_of[model] for model in rows["model"]]) + 0.13 * (1 - 2 * i)
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            axis.errorbar(
                rows["value"],
                heights,
                xerr=spread,
                fmt=MARKERS[i],
                color=COLORS[i],
                capsize=2,
                markersize=5,
                label=f"pass@{k}",
            )
        axis.set_title(group, fontsize=10)
        axis.set(xlim=(-0.06, 1.06), ylim=(-0.6, len(models) - 0.4))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0, 0].set_yticks(list(height_of.values()), list(height_of))
    axes[0, len(groups) // 2].set_xlabel("share of questions")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ks)
    )
    return figure


def pass_at_finding(table: pd.DataFrame, group: str = "in-family") -> str:
    """What `pass_at` shows of one group, in a sentence for its caption: models by pass@1."""
    first = table[(table["k"] == 1) & (table["group"] == group)]
    ordered = first.sort_values("value", ascending=False, kind="stable")
    listed = ", ".join(f"{row.model} {row.value:.2f}" for row in ordered.itertuples())
    return f"pass@1 in the group {group}, best first: {listed}."


def pass_at_alt(table: pd.DataFrame) -> str:
    """The figure of `pass_at` in words, for k = 1."""
    first = table[table["k"] == 1]
    return "; ".join(
        f"{row.model}, {row.group}: pass@1 {row.value:.2f}" for row in first.itertuples()
    )


def staleness_alt(levels: pd.DataFrame) -> str:
    """The figure of `staleness` in words. levels: of `staleness.staleness_table`."""
    return "; ".join(
        f"{name}, staleness {level}: {row['pass_at_1']:.3f}"
        for (name, level), row in levels.iterrows()
    )


def staleness(ends: pd.DataFrame) -> Figure:
    """pass@1 after equal samples by staleness, one line per objective and one point per seed; and
    the modelled gain in time.

    ends: columns `staleness`, `objective`, `seed`, `pass_at_1`, `times_faster`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(PHONE_WIDTH, 3.6), width_ratios=(3, 2))
    levels = sorted(ends["staleness"].unique())
    x_of = {level: i for i, level in enumerate(levels)}
    for i, (objective, runs) in enumerate(ends.groupby("objective", sort=False)):
        shift = 0.08 * (2 * i - 1)
        color, marker = COLORS[i], MARKERS[i]
        left.plot(
            [x_of[level] + shift for level in runs["staleness"]],
            runs["pass_at_1"],
            marker,
            color=color,
            alpha=0.5,
        )
        mean = runs.groupby("staleness")["pass_at_1"].mean()
        left.plot(
            [x_of[level] + shift for level in mean.index],
            mean,
            color=color,
            marker=marker,
            label=objective,
        )
    left.set(ylabel="pass@1 of the last weights", ylim=(0, None))
    left.legend()
    faster = ends.groupby("staleness")["times_faster"].mean()
    right.plot([x_of[level] for level in faster.index], faster, "o-", color=COLORS[2])
    right.axhline(1, color="#000000", linewidth=0.8, linestyle=":")
    right.set(ylabel="times faster (modelled)", ylim=(0, None))
    for axis in (left, right):
        axis.set_xticks(range(len(levels)), [str(level) for level in levels])
        axis.set_xlabel("staleness (rollouts)")
    return figure
