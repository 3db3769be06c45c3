"""Effect of the initialisation along the depth: size of the residual stream and of its gradient
after each block.

Guarantees: uses the decoder's own `init_weights` and forward pass; the scheme "plain" differs in
one thing: the two matrices that write into the residual stream are not divided by
sqrt(2 x blocks). Nothing is trained.
Out of scope: which scheme trains better.
"""

import dataclasses
import math

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import best_device
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.measures import random_tokens

SCHEMES = ("depth-scaled", "plain")


def initialised(config: MoxinConfig, scheme: str, seed: int) -> MoxinForCausalLM:
    """A new model initialised by `scheme`; both schemes draw the same random numbers. Raises
    ValueError for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: available are {', '.join(SCHEMES)}")
    model = MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed))
    if scheme == "plain":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(math.sqrt(2 * config.num_hidden_layers))
    return model


def residual_by_depth(
    config: MoxinConfig, *, seeds: list[int], rows: int = 2, length: int = 64
) -> pd.DataFrame:
    """Root mean square of the residual stream after each block, and of the gradient that arrives
    there.

    The input is random tokens and the loss is that of predicting other random tokens, summed over
    them, so that the gradient does not shrink with the batch. Columns: scheme, seed, block (0 is
    the embedding), rms, gradient.
    """
    records = []
    for scheme in SCHEMES:
        for seed in seeds:
            model = initialised(config, scheme, seed).to(best_device())
            states: list[Tensor] = []  # [B, T, C] each

            def record_state(
                module: torch.nn.Module,
                inputs: object,
                output: Tensor,
                states: list[Tensor] = states,
            ) -> None:
                output.retain_grad()
                states.append(output)

            for module in (model.model.embed_tokens, *model.model.layers):
                module.register_forward_hook(record_state)
            ids = random_tokens(config, rows, length, seed).to(best_device())
            logits = model(ids)
            labels = random_tokens(config, rows, length, seed + 1_000_000).to(best_device())
            F.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"
            ).backward()
            for block, state in enumerate(states):
                if state.grad is None:
                    raise RuntimeError(f"no gradient reached the stream after block {block}")
                records.append((scheme, seed, block, _rms(state), _rms(state.grad)))
    return pd.DataFrame(records, columns=["scheme", "seed", "block", "rms", "gradient"])


def gradient_falls(sizes: pd.DataFrame) -> dict[str, float]:
    """How many times larger the gradient is after the first block than after the last, by scheme.
    sizes: the frame of `residual_by_depth`.
    """
    gradients = sizes.groupby(["scheme", "block"])["gradient"].mean()
    last = sizes["block"].max()
    return {name: gradients[name, 1] / gradients[name, last] for name in SCHEMES}


def _rms(tensor: Tensor) -> float:
    return tensor.detach().double().pow(2).mean().sqrt().item()


def by_number_of_blocks(
    config: MoxinConfig, depths: list[int], *, seeds: list[int]
) -> pd.DataFrame:
    """Size of the stream at the top of models of several depths, to see whether it grows with
    depth.

    Index: blocks. Columns: the rms after the last block for each scheme, and the rms of the
    embedding (means over seeds).
    """
    rows = {}
    for depth in depths:
        model_config = dataclasses.replace(config, num_hidden_layers=depth)
        residual = residual_by_depth(model_config, seeds=seeds)
        means = residual.groupby(["scheme", "block"])["rms"].mean()
        rows[depth] = {scheme: means[scheme, depth] for scheme in SCHEMES} | {
            "embedding": means[SCHEMES[0], 0]
        }
    return pd.DataFrame(rows).T.rename_axis("blocks")
