"""What the initialisation does along the depth: size of the residual stream and of its gradient
behind each block.

Guarantees: the decoder's own `init_weights` and forward pass; "plain" differs from it in one thing,
the two matrices that write into the residual stream are not divided by sqrt(2 x blocks). Nothing is
trained. Does not: show which scheme trains better.
"""

import dataclasses
import math

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.measures import random_tokens

SCHEMES = ("depth-scaled", "plain")


def initialised(config: MoxinConfig, scheme: str, seed: int) -> MoxinForCausalLM:
    """A fresh model by `scheme`; the draws are the same for both. Raises ValueError for an unknown
    scheme.
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
    """Root mean square of the residual stream behind each block, and of the gradient that arrives
    there.

    Random tokens, the loss of predicting other random tokens (mean over them; the gradient is
    multiplied by their number, so that it does not shrink with the batch). Columns: scheme, seed,
    block (0 is the embedding), rms, gradient.
    """
    found = []
    for scheme in SCHEMES:
        for seed in seeds:
            model = initialised(config, scheme, seed)
            states: list[Tensor] = []

            def catch(
                module: torch.nn.Module,
                inputs: object,
                output: Tensor,
                states: list[Tensor] = states,
            ) -> None:
                output.retain_grad()
                states.append(output)

            for module in (model.model.embed_tokens, *model.model.layers):
                module.register_forward_hook(catch)
            logits = model(random_tokens(config, rows, length, seed))
            labels = random_tokens(config, rows, length, seed + 1_000_000)
            F.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"
            ).backward()
            for block, state in enumerate(states):
                if state.grad is None:
                    raise RuntimeError(f"no gradient reached the stream behind block {block}")
                found.append((scheme, seed, block, _rms(state), _rms(state.grad)))
    return pd.DataFrame(found, columns=["scheme", "seed", "block", "rms", "gradient"])


def _rms(tensor: Tensor) -> float:
    return tensor.detach().double().pow(2).mean().sqrt().item()


def by_number_of_blocks(
    config: MoxinConfig, numbers: list[int], *, seeds: list[int]
) -> pd.DataFrame:
    """Size at the top of models of several depths: does it grow with depth, or not?

    Indexed by blocks; columns: the rms behind the last block under each scheme (means over seeds),
    and of the embedding.
    """
    rows = {}
    for number in numbers:
        shallow = dataclasses.replace(config, num_hidden_layers=number)
        means = residual_by_depth(shallow, seeds=seeds).groupby(["scheme", "block"])["rms"].mean()
        rows[number] = {scheme: means[scheme, number] for scheme in SCHEMES} | {
            "embedding": means[SCHEMES[0], 0]
        }
    return pd.DataFrame(rows).T.rename_axis("blocks")
