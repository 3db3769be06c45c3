"""One training of `bench grpo-variants`, its answers, and what is kept of both.

Guarantees: the training is `reasoning.experiments.reinforce`, the stage's own; one that fails is a
record with its reason.
Out of scope: which one, and how many steps (`grpo_variants_plan.py`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moxin_lab.bench import say
from moxin_lab.bench.grpo_variants_plan import BY_NAME, STAGE_SEED, grpo_of
from moxin_lab.bench.grpo_variants_results import START, VALIDATION

if TYPE_CHECKING:
    import pandas as pd

    from moxin_lab.scales.sections import GRPOSettings


def run_one(
    variant: str,
    seed: int,
    steps: int,
    setup: SimpleNamespace,
    verifier: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The record of one training, or of the start. One that diverges or finds no room in memory or
    on disk has `failed` with the reason and is tried again by the next run.
    """
    import torch

    from moxin_lab.bench import free_memory, peak_bytes
    from moxin_lab.model import convert
    from moxin_lab.reasoning import answers, experiments

    free_memory(options.device)
    record: dict[str, Any] = {
        "variant": variant,
        "seed": seed,
        "machine": machine_name(),
        "torch": torch.__version__,
    }
    model = convert.from_pretrained(setup.cot, dtype=torch.float32, device=options.device)
    try:
        if variant != START:
            grpo = grpo_of(BY_NAME[variant], setup.settings, steps)
            chosen = setup.settings.model_copy(update={"grpo": grpo})
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="grpo-variants-") as folder:
                model, log = experiments.reinforce(
                    model,
                    setup.tokenizer,
                    setup.asked.problems,
                    verifier,
                    chosen,
                    seed=seed,
                    folder=Path(folder),
                    progress=every_tenth,
                )
            record |= {"seconds": time.monotonic() - began, **of_log(log, grpo)}
        began = time.monotonic()
        found = answers.answer(
            model,
            setup.tokenizer,
            setup.tests,
            verifier,
            settings=setup.settings,
            seed=STAGE_SEED,
        )
    except (ArithmeticError, RuntimeError, OSError) as error:
        say(f"{variant}, seed {seed}, failed: {error}")
        return record | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return record | {
        "answer seconds": time.monotonic() - began,
        "peak bytes": peak_bytes(options.device),
        **of_answers(found, setup.settings.pass_at),
    }


def of_log(log: pd.DataFrame, grpo: GRPOSettings) -> dict[str, Any]:
    """What a log says: the ledger over the whole run, the share of groups without contrast among
    those drawn first, and means over the last tenth of the rollouts. Entropy and KL are those at
    the temperature of the training, in nats a token.
    """
    updates = grpo.updates_per_rollout
    rollouts = log.iloc[::updates]  # each row of a rollout has the whole rollout's numbers
    last = max(1, len(rollouts) // 10)
    end, ends = log.tail(last * updates), rollouts.tail(last)
    ledger = {
        name: int(rollouts[column].sum())
        for name, column in (
            ("generated", "completions/generated"),
            ("consumed", "completions/consumed"),
            ("discarded", "completions/discarded"),
            ("generated tokens", "num_tokens"),
            ("consumed tokens", "num_tokens/consumed"),
            ("discarded tokens", "num_tokens/discarded"),
        )
    }
    return {
        "steps": len(rollouts),
        "optimizer steps": len(log),
        **ledger,
        "groups without contrast": float(rollouts["frac_reward_zero_std"].mean()),
        "groups without contrast at the end": float(ends["frac_reward_zero_std"].mean()),
        "reward at the end": float(ends["reward"].mean()),
        "entropy at the beginning": float(log.head(last * updates)["entropy"].mean()),
        "entropy at the end": float(end["entropy"].mean()),
        "clip fraction at the end": float(end["clip_ratio"].mean()),
        "kl at the end": float(end["kl"].mean()),
    }


def of_answers(found: pd.DataFrame, ks: Sequence[int]) -> dict[str, Any]:
    """pass@k by group of questions, the mean number of different answers to a validation question,
    and in `right` by group the number of right samples of each question, as text.
    """
    from moxin_lab.reasoning import answers

    passed = {
        f"pass@{k} {group}": float(values.mean())
        for k in ks
        for group, values in answers.items(found, k).groupby("group", sort=False)
    }
    counts = found.groupby(["group", "item"], sort=False)["right"].sum()
    validation = found[found["group"] == VALIDATION]
    different = validation.groupby("item")["answer"].nunique(dropna=False)
    return {
        **passed,
        "different answers": float(different.mean()),
        "right": {
            group: " ".join(map(str, counts[group])) for group in counts.index.unique("group")
        },
    }


def every_tenth(step: int, total: int, text: str) -> None:
    if step % max(1, total // 10) == 0:
        say(f"  {step} of {total}: {text}")


def machine_name() -> str:
    import torch

    from moxin_lab.lab.environment import cpu_name

    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
