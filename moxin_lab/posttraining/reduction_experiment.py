"""A controlled experiment: how the loss is reduced, against how a step is cut into micro-batches.

Moxin's script sums the loss over the tokens of a micro-batch (`--reduce_loss sum`) and leaves the
division by micro-batches and ranks to the trainer, whose DeepSpeed file clips the gradient at
"auto", which accelerate fills with 1.0. The script's description says that this weighs all tokens
equally. Here only the reduction, the clipping and the cut vary.

Guarantees: runs of one seed start from the same weights and read the same conversations in the same
order.
Out of scope: statements about 7B; a run is a small model from scratch and a few dozen steps.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from moxin_lab.lab.progress import Progress
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining import sft
from moxin_lab.posttraining.batches import (
    REDUCTIONS,
    ConversationStream,
    Reduction,
    label_weights,
)
from moxin_lab.posttraining.chat import Encoded
from moxin_lab.scales.sections import (
    InstructionTuningSettings,
    ReductionExperiment,
    SupervisedSettings,
)
from moxin_lab.training.fit import fit_language_model

VARIANTS: tuple[tuple[Reduction, bool], ...] = (
    ("mean", True),
    ("mean", False),
    ("sum", True),
    ("sum", False),
    ("part_mean", True),
)
"""Reduction, and whether the gradient is clipped."""


def gradients_of_a_step(
    model: nn.Module, stream_of: Callable[[Any], ConversationStream], parts: Sequence[int]
) -> pd.DataFrame:
    """Norm of the gradient of step 0 under each reduction and cut, and its cosine with the uncut
    `mean`, on which an update with a normalised scale, such as Adam's, depends. stream_of: a
    reduction's name to its stream.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows: list[dict[str, Any]] = []
    first: Tensor | None = None
    for reduction, num_parts in product(REDUCTIONS, parts):
        model.zero_grad()
        stream = stream_of(reduction)
        for part in range(num_parts):
            batch = {
                name: tensor.to(device) for name, tensor in stream.batch(0, part, num_parts).items()
            }
            sft.sft_loss()(model, batch)["loss"].backward()
        gradient = torch.cat(
            [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
        )
        first = gradient if first is None else first
        norm = gradient.norm()
        cosine = torch.dot(gradient, first) / (norm * first.norm())
        rows.append(
            {
                "reduction": reduction,
                "micro-batches": num_parts,
                "norm": float(norm),
                "cosine": float(cosine),
            }
        )
    model.zero_grad()
    model.train(was_training)
    return pd.DataFrame(rows)


def train_all(
    model_of: Callable[[int], nn.Module],
    train: Sequence[Encoded],
    test: Sequence[Encoded],
    experiment: ReductionExperiment,
    tuning: SupervisedSettings,
    *,
    row_tokens: int,
    pad_id: int,
    batch_tokens: int,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One row per run: `reduction`, `clipped`, `micro_batch`, `seed`, `answer_loss` (nats per
    token of the held-out answers), and `gradient_norm`, the median before clipping. model_of: seed
    to a model from scratch.
    """
    runs = list(product(range(experiment.seeds), VARIANTS, experiment.micro_batches))
    rows = []
    for index, (seed, (reduction, clipped), micro_batch) in enumerate(runs):
        if progress is not None:
            progress(index, len(runs), f"{reduction}, micro-batches of {micro_batch}, seed {seed}")
        examples = experiment.steps * experiment.examples_per_step
        stream = ConversationStream(
            train,
            examples_per_step=experiment.examples_per_step,
            epochs=-(-examples // len(train)),
            row_tokens=row_tokens,
            seed=seed,
            pad_id=pad_id,
            layout=tuning.layout,
            reduction=reduction,
        )
        stream.num_steps = experiment.steps
        changes = {
            "micro_batch_examples": micro_batch,
            "learning_rate": experiment.learning_rate,
            "gradient_clip_norm": tuning.gradient_clip_norm if clipped else None,
            "checkpoint_every_steps": experiment.steps + 1,
        }
        model = model_of(seed)
        with tempfile.TemporaryDirectory() as folder:
            log = fit_language_model(
                model,
                stream,
                tuning.model_copy(update=changes),
                sft.sft_loss(),
                resume_folder=Path(folder),
                text="run",
            )
        nats, targets = sft.answer_nats(
            model.to(device), test, batch_tokens=batch_tokens, device=device
        )
        rows.append(
            {
                "reduction": reduction,
                "clipped": clipped,
                "micro_batch": micro_batch,
                "seed": seed,
                "answer_loss": nats.sum() / targets.sum(),
                "gradient_norm": float(log["gradient_norm"].median()),
            }
        )
    return pd.DataFrame(rows)


def differences(runs: pd.DataFrame, interval: Callable[[Any], Any]) -> pd.DataFrame:
    """Held-out answer loss of each variant and cut minus that of `mean`, clipped, with the largest
    micro-batch and the same seed: mean over seeds and `interval(differences)`, which returns a
    value and two bounds. Where the interval contains 0, no difference was seen. Rounded to 1e-4
    nats, below which float32 sums in another order differ too.
    """
    largest = runs["micro_batch"].max()
    uncut = runs["clipped"] & (runs["reduction"] == "mean") & (runs["micro_batch"] == largest)
    base = runs[uncut].set_index("seed")["answer_loss"]
    runs = runs.assign(
        difference=runs["answer_loss"] - runs["seed"].map(base), variant=variant_names(runs)
    )
    groups = runs.groupby(["variant", "micro_batch"], sort=False)
    table = groups.agg(
        gradient_norm=("gradient_norm", "median"), answer_loss=("answer_loss", "mean")
    )
    columns = ["difference", "low", "high"]
    table[columns] = pd.DataFrame(
        [interval(part["difference"]) for _, part in groups], index=table.index
    )
    table[columns] = table[columns].round(4) + 0.0  # no minus sign before a zero
    return table.reset_index()


def variant_names(runs: pd.DataFrame) -> pd.Series:
    """The variant of each run, such as `sum` or `sum, not clipped`."""
    return runs["reduction"] + runs["clipped"].map({True: "", False: ", not clipped"})


def model_maker(config: MoxinConfig, num_hidden_layers: int) -> Callable[[int], nn.Module]:
    """A function from a seed to a model from scratch with the shape of `config`, but
    `num_hidden_layers` layers; the argument `model_of` of `train_all`.
    """
    shape = replace(config, num_hidden_layers=num_hidden_layers)
    return lambda seed: MoxinForCausalLM(shape, generator=torch.Generator().manual_seed(seed))


def gradients_by_reduction(
    base: nn.Module, short: Sequence[Encoded], *, seed: int, row_tokens: int, pad_id: int
) -> pd.DataFrame:
    """`gradients_of_a_step` for a step of 8 conversations, split into 1, 2 and 8 parts."""

    def stream_of(reduction: Reduction) -> ConversationStream:
        return ConversationStream(
            short,
            examples_per_step=8,
            epochs=1,
            row_tokens=row_tokens,
            seed=seed,
            pad_id=pad_id,
            layout="packed",
            reduction=reduction,
        )

    return gradients_of_a_step(base, stream_of, parts=(1, 2, 8))


def gradients_sentence(gradients: pd.DataFrame) -> str:
    """What the table of `gradients_by_reduction` shows."""
    worst = gradients.groupby("reduction")["cosine"].min()
    norms = gradients[gradients["reduction"] == "sum"]["norm"]
    return (
        "`mean` is the same gradient however the step is split (least cosine "
        f"{worst['mean']:.6f}). `sum` has the same direction ({worst['sum']:.6f}), but its norm is "
        f"{norms.min():,.0f} to {norms.max():,.0f}: clipping at 1.0 always acts, and gives every "
        "step the same length. `part_mean` changes direction with the split (down to "
        f"{worst['part_mean']:.3f})."
    )


def run(
    base: MoxinForCausalLM,
    short: Sequence[Encoded],
    short_test: Sequence[Encoded],
    settings: InstructionTuningSettings,
    interval: Callable[[Any], Any],
    *,
    row_tokens: int,
    pad_id: int,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """All trainings of the experiment from scratch: runs, `differences` and `ways_to_fail`.
    base: only its configuration and device are used. interval: of a mean over seeds.
    """
    experiment = settings.reduction_experiment
    runs = train_all(
        model_maker(base.config, experiment.num_hidden_layers),
        short,
        short_test,
        experiment,
        settings.sft,
        row_tokens=row_tokens,
        pad_id=pad_id,
        batch_tokens=settings.batch_tokens,
        device=base.lm_head.weight.device,
        progress=progress,
    )
    runs["variant"] = variant_names(runs)
    return runs, differences(runs, interval), ways_to_fail(runs, interval)


def ways_sentence(ways: Mapping[str, Any]) -> str:
    """The contrasts of `ways_to_fail` with their intervals."""
    sentences = []
    for way, effect in ways.items():
        seen = "a difference" if effect.low > 0 or effect.high < 0 else "no difference seen"
        interval = f"{effect.low:+.3f} to {effect.high:+.3f}"
        sentences.append(f"{way}: {effect.value:+.3f} ({interval}), {seen}")
    return f"{'; '.join(sentences)}. Above 0 the first is worse."


def worked_example(counts: Sequence[int] = (8, 2), cuts: Sequence[int] = (1, 2)) -> pd.DataFrame:
    """Share of a step's weight that each conversation has under each reduction: one row per
    reduction, one column per conversation and cut. counts: labels of each conversation, in the
    order in which they are dealt out to the parts.
    """
    columns: dict[str, list[str]] = {"reduction": list(REDUCTIONS)}
    for parts in cuts:
        cut = "uncut" if parts == 1 else f"in {parts} parts"
        chunks = torch.tensor(counts, dtype=torch.float32).chunk(parts)
        for reduction in REDUCTIONS:
            weights = torch.cat(
                [
                    chunk * label_weights(reduction, chunk, sum(counts), len(counts), parts)
                    for chunk in chunks
                ]
            )
            for number, share in enumerate(weights / weights.sum()):
                name = f"answer {number + 1}, {counts[number]} tokens, {cut}"
                columns.setdefault(name, []).append(f"{share:.0%}")
    return pd.DataFrame(columns).set_index("reduction")


def gradients_wide(gradients: pd.DataFrame) -> pd.DataFrame:
    """The table of `gradients_of_a_step` with one row per reduction and the numbers of parts in
    columns.
    """
    wide = gradients.pivot(index="reduction", columns="micro-batches")
    wide.columns = pd.Index([f"{name}, {parts} part(s)" for name, parts in wide.columns])
    return wide


def differences_sentence(compared: pd.DataFrame) -> str:
    """The rows of `differences` whose interval excludes 0."""
    different = compared[(compared["low"] > 0) | (compared["high"] < 0)]
    listed = "; ".join(
        f"{row.variant} with micro-batches of {row.micro_batch}: {row.difference:+.3f}"
        for row in different.itertuples()
    )
    return (
        f"Intervals without 0: {listed or 'none; no difference seen'} (mean difference to `mean`, "
        "clipped, in nats per token)."
    )


def ways_to_fail(runs: pd.DataFrame, interval: Callable[[Any], Any]) -> dict[str, Any]:
    """Two contrasts that could explain a failed reproduction, each with `interval(differences)` of
    the held-out answer loss over seeds: the length of a step, and the weights of its tokens.

    runs: of `train_all`, with the column `variant`.
    """
    largest, smallest = runs["micro_batch"].max(), runs["micro_batch"].min()
    loss = runs.pivot(index="seed", columns=["variant", "micro_batch"], values="answer_loss")
    contrasts = {
        "length of the step, sum against mean, not clipped": (
            ("sum", largest),
            ("mean, not clipped", largest),
        ),
        "weights of tokens, part_mean cut small against mean": (
            ("part_mean", smallest),
            ("mean", largest),
        ),
    }
    return {way: interval(loss[first] - loss[second]) for way, (first, second) in contrasts.items()}
