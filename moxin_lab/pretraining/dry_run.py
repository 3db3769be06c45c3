"""What a scale's pretraining would take, computed before any device is rented: phases and pools,
steps, operations, memory of a device and days, by number of devices.

    moxin-lab run --scale full --dry-run                      # prints `text`
    plan(scales.load("full"), [8, 16, 64], utilisation=0.5)

Guarantees: the model is built on the meta device by the class that would be trained; the division
of a step and the learning rates are those of the trainer, so settings that it would refuse are
refused here. Memory is an estimate (`estimated_bytes`), which `bench scaling` sets beside measured
peaks.
Out of scope: reading the text; whether the pools hold as many tokens as the phases draw.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from moxin_lab.model.config import MoxinConfig, count_parameters, training_flops_per_token
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining import parallel, tables, trainer
from moxin_lab.scales import Scale
from moxin_lab.training.schedules import pretraining_learning_rate

SECONDS_PER_DAY = 86_400
COUNTS = (1, 8, 16, 64)
MEASURED_UTILISATION = 0.485
"""Of two H200, full width, 24 blocks, FSDP2: reports/released/scaling."""


@dataclass(frozen=True)
class Plan:
    """parameters: of the model. phases: one row each, in order. devices: one row per number of
    devices and way of checkpointing.
    """

    parameters: int
    phases: pd.DataFrame
    devices: pd.DataFrame


def plan(
    scale: Scale,
    counts: list[int],
    *,
    utilisation: float,
    tensor: int = 1,
    peak: float = tables.PEAKS["H100"],
) -> Plan:
    """The plan of a scale's stage 04. utilisation: useful share of `peak` FLOP/s, as measured by
    `bench scaling`. Raises ValueError for a step or a model that does not divide into these ranks.
    """
    settings = scale.pretraining
    config = MoxinConfig(vocab_size=scale.tokenizer.vocab_size, **scale.model.model_dump())
    with torch.device("meta"):
        model = MoxinForCausalLM(config)
    phases = pd.DataFrame(_phases(settings, config))
    flops = float(phases["flops"].sum())
    rows = []
    for count in counts:
        if count % tensor:
            raise ValueError(f"{count} devices do not divide into groups of {tensor}")
        for checkpointing in ("none", "full"):
            layout = parallel.ParallelSettings(count // tensor, tensor, checkpointing)
            if count > 1:  # one device trains without sharding
                parallel.check(model, layout, settings.precision)
            memory = estimated_bytes(
                config, count, tensor, checkpointing, settings.micro_batch_tokens
            )
            rows.append(
                {
                    "devices": count,
                    "data": layout.data,
                    "tensor": tensor,
                    "checkpointing": checkpointing,
                    "micro_batches": trainer.accumulation(settings, layout.data),
                    "memory_bytes": memory,
                    "days": flops / (count * peak * utilisation) / SECONDS_PER_DAY,
                }
            )
    return Plan(sum(p.numel() for p in model.parameters()), phases, pd.DataFrame(rows))


def text(scale: Scale) -> str:
    """The plan for those of `COUNTS` into which a step divides, and for the scale's own layout, in
    words. Raises ValueError as `plan` does.
    """
    settings = scale.pretraining
    counts = [
        n for n in COUNTS if settings.tokens_per_step % (n * settings.micro_batch_tokens) == 0
    ]
    found = plan(scale, counts or [1], utilisation=MEASURED_UTILISATION)  # of 1: says why not
    lines = [
        f"pretraining at scale {scale.name}: {found.parameters:,} parameters, "
        f"{found.phases['tokens'].sum():,} tokens, {found.phases['flops'].sum():.3g} FLOPs"
    ]
    for phase in found.phases.to_dict("records"):
        lines.append(
            f"  {phase['phase']}: {phase['steps']:,} steps of {phase['context']:,} tokens a row, "
            f"learning rate {phase['first_rate']:.2g} to {phase['last_rate']:.2g}; "
            f"{phase['pools']}"
        )
    lines.append(
        f"  on H100s at {MEASURED_UTILISATION:.1%} of their bf16 peak, as two H200 did at full "
        "width (reports/released/scaling); memory is an estimate, without and with checkpointing:"
    )
    for count, rows in found.devices.groupby("devices"):
        memory = " and ".join(f"{each / 1e9:.0f}" for each in rows["memory_bytes"])
        time = _duration(rows["days"].iloc[0])
        lines.append(f"    {count} device{'s' * (count > 1)}: {memory} GB each, {time}")
    return "\n".join([*lines, _own_layout(scale)])


def _own_layout(scale: Scale) -> str:
    """What `pretraining.parallel` of a scale means."""
    layout = scale.pretraining.parallel
    if layout is None:
        return "  this scale trains in one process (pretraining.parallel: null)"
    count = layout.data * layout.tensor
    own = plan(scale, [count], utilisation=MEASURED_UTILISATION, tensor=layout.tensor).devices
    # `selective` keeps more than `full` and less than `none`: the larger figure is stated
    keeps = "full" if layout.activation_checkpointing == "full" else "none"
    row = own.set_index("checkpointing").loc[keeps]
    return (
        f"  this scale's own layout: data {layout.data} x tensor {layout.tensor} = {count} ranks, "
        f"activation checkpointing {layout.activation_checkpointing}, {row['micro_batches']:.0f} "
        f"micro-batches a step, {row['memory_bytes'] / 1e9:.0f} GB each, "
        f"{_duration(row['days'])}; each rank is started by torchrun"
    )


def _duration(days: float) -> str:
    return f"{days:,.0f} days" if days >= 2 else f"{days * SECONDS_PER_DAY:,.0f} s"


def _phases(settings: Any, config: MoxinConfig) -> list[dict[str, Any]]:
    """Name, pools, steps, tokens, learning rates at both ends and FLOPs of each phase; rows count
    as one document each, which is the most that attention can cost.
    """
    total, first, rows = sum(phase.steps for phase in settings.phases), 0, []

    def rate(step: int) -> float:
        return pretraining_learning_rate(
            step,
            total,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            final_ratio=settings.final_learning_rate_ratio,
        )

    for phase in settings.phases:
        tokens = phase.steps * settings.tokens_per_step
        rows.append(
            {
                "phase": phase.name,
                "pools": ", ".join(f"{name} {share:g}" for name, share in phase.mixture.items()),
                "context": phase.sequence_length,
                "steps": phase.steps,
                "tokens": tokens,
                "first_rate": rate(first),
                "last_rate": rate(first + phase.steps - 1),
                "flops": tokens * training_flops_per_token(config, phase.sequence_length),
            }
        )
        first += phase.steps
    return rows


def estimated_bytes(
    config: MoxinConfig, devices: int, tensor: int, checkpointing: str, tokens: int
) -> int:
    """Peak memory of one device under bf16-mixed. tokens: of the micro-batch of `tensor` devices
    that split one model's tensors.

    16 bytes a parameter (weight, gradient and AdamW's two moments in float32) over all devices.
    Beside them: bfloat16 weights and gradients of two blocks (one runs, the next is gathered) and
    of embedding and head, and a block's gradient in float32; what a block keeps for its backward
    pass (its input, both norms' outputs, queries, keys, values, attention's output, both sums,
    gate, up and their product), or with checkpointing its input alone and one block's whole; the
    logits of a chunk twice. Tensor parallelism divides what lies inside attention and feed-forward.
    """
    parts = count_parameters(config)
    outside = parts["embed_tokens"] + parts["lm_head"]
    held = 16 * parts["total"] / devices
    gathered = (2 * (2 + 2) + 4) * parts["block"] / tensor + (2 + 2) * outside
    width, inner = config.hidden_size, config.intermediate_size
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    kept = 2 * tokens * (5 * width + (heads + 3 * inner) / tensor)
    activations = config.num_hidden_layers * kept
    if checkpointing == "full":
        activations = config.num_hidden_layers * 2 * tokens * width + kept
    logits = min(tokens // tensor, trainer.LOSS_CHUNK["cuda"]) * config.vocab_size
    return int(held + gathered + activations + 2 * 2 * logits + 8 * tokens * width)
