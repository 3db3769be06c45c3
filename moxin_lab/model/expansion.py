"""Depth expansion: a deeper decoder from a trained one, 32 blocks to 36 in Moxin, by three named
recipes.

    deeper = expand(model, 36, "identity")          # logits equal those of `model`, bit for bit
    layer_plan(32, 36, "identity")                  # [(0, False), ..., (7, False), (7, True), (8, False), ...]

The report says that Mistral is extended from 32 to 36 blocks. How, where the new blocks stand and
what weights they start with it does not say, and the released training code only loads an expanded
checkpoint (papers/deviations.yml, `expanded-model`). So the recipes are our reading of the
literature, not a record of what was done; `layer_plan` gives the places of each:

- `identity`: the old blocks in as many even groups as there are new blocks; behind each group a
  copy of its last block with
  o_proj and down_proj zeroed, so that it adds nothing to the residual stream (LLaMA Pro, Wu et al.
  2024, arXiv 2401.02415, whose authors then train the new blocks alone). 32 -> 36: behind blocks 7,
  15, 23 and 31.
- `interleaved`: the same places, plain copies: each copied block acts twice in a row, so logits
  change from the start.
- `top`: plain copies of the top blocks stacked on the top in their order. 32 -> 36: 0..31, then
  28..31 again. Depth up-scaling
  (SOLAR, Kim et al. 2023, arXiv 2312.15166) also runs a stretch of blocks twice, but in the middle:
  it joins the model without its last d blocks to a copy without its first d, for 32 -> 36 with d =
  14: 0..17, then 14..31. There both ends stay where they were; here the lowest copy reads what the
  old top wrote for the head.

Guarantees: old blocks, embedding, last norm and head keep their weights bit for bit; the new model
shares no memory with the old one and has its dtype, device, mode and back end; nothing is random.
Does not: train, freeze old blocks, or draw new weights (copies keep the residual scale of the old
depth, see `init_weights`).
"""

import dataclasses

import torch

from moxin_lab.model.decoder import MoxinForCausalLM

RECIPES = ("identity", "interleaved", "top")


def layer_plan(num_old: int, num_new: int, recipe: str) -> list[tuple[int, bool]]:
    """For each block of the deeper model, bottom to top: the old block its weights come from, and
    whether it is a new one.

    num_old, num_new: blocks before and after; equal numbers give the old blocks alone. Raises
    ValueError for an unknown recipe,
    fewer blocks than before, or more than twice as many: each recipe copies an old block at most
    once.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: available are {', '.join(RECIPES)}")
    if num_old < 1 or num_new < num_old:
        raise ValueError(
            f"{num_old} blocks cannot be expanded to {num_new}: expansion only adds blocks"
        )
    added = num_new - num_old
    if added > num_old:
        raise ValueError(
            f"{num_old} blocks cannot be expanded to {num_new}: recipe {recipe!r} copies each block at most once, so "
            f"{2 * num_old} is the most; expand in several steps"
        )
    if recipe == "top":
        return [(layer, False) for layer in range(num_old)] + [
            (layer, True) for layer in range(num_old - added, num_old)
        ]
    ends_of_groups = {(group + 1) * num_old // added - 1 for group in range(added)}
    plan = []
    for layer in range(num_old):
        plan.append((layer, False))
        if layer in ends_of_groups:
            plan.append((layer, True))
    return plan


def expand(model: MoxinForCausalLM, num_hidden_layers: int, recipe: str) -> MoxinForCausalLM:
    """A new model of `num_hidden_layers` blocks with the weights of `model`, by `recipe` (see the
    module's text).

    Every weight takes gradients. With `identity`, o_proj and down_proj of a new block get gradients
    at the first step; its other weights, which act through these two, from the second step on.
    Raises ValueError as `layer_plan` does.
    """
    plan = layer_plan(model.config.num_hidden_layers, num_hidden_layers, recipe)
    old = model.state_dict()
    weights = {
        name: tensor.clone() for name, tensor in old.items() if not name.startswith("model.layers.")
    }
    for layer, (source, is_new) in enumerate(plan):
        prefix = f"model.layers.{source}."
        for name, tensor in old.items():
            if not name.startswith(prefix):
                continue
            part = name.removeprefix(prefix)
            silent = (
                is_new
                and recipe == "identity"
                and part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            )
            weights[f"model.layers.{layer}.{part}"] = (
                torch.zeros_like(tensor) if silent else tensor.clone()
            )
    config = dataclasses.replace(model.config, num_hidden_layers=num_hidden_layers)
    with torch.device("meta"):
        deeper = MoxinForCausalLM(
            config,
            attention_backend=model.attention_backend,
            activation_checkpointing=model.activation_checkpointing,
        )
    deeper.load_state_dict(weights, assign=True)
    deeper.requires_grad_(True)
    return deeper.train(model.training)
