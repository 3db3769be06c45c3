"""Depth expansion: a deeper decoder from a trained one (in Moxin from 32 to 36 blocks), by three
named recipes.

    deeper = expand(model, 36, "identity")    # logits equal those of `model`, bit for bit
    layer_plan(32, 36, "identity")            # [(0, False), ..., (7, False), (7, True), ...]

The report says that Mistral was extended from 32 to 36 blocks. It does not say where the new blocks
were inserted or from which weights they started, and the released training code only loads an
expanded checkpoint (papers/deviations.yml, `expanded-model`). The recipes are therefore our reading
of the literature, not a record of what was done. `layer_plan` lists the blocks of each:

- `identity`: the old blocks are split into even groups, one per new block. After each group comes
  a copy of its last block with o_proj and down_proj set to zero, so that it adds nothing to the
  residual stream (LLaMA Pro, Wu et al. 2024, arXiv 2401.02415, whose authors then train only the
  new blocks). 32 -> 36: after the blocks 7, 15, 23 and 31.
- `interleaved`: plain copies in the same positions. Each copied block acts twice in a row, so the
  logits change from the start.
- `top`: plain copies of the top blocks, appended in their order. 32 -> 36: 0..31, then 28..31
  again. Depth up-scaling (SOLAR, Kim et al. 2023, arXiv 2312.15166) also repeats a range of blocks,
  but in the middle: it joins the model without its last d blocks to a copy without its first d
  blocks, for 32 -> 36 with d = 14: 0..17, then 14..31. There both ends of the model stay in place;
  here the lowest copy reads what the old top block wrote for the head.

Guarantees: old blocks, embedding, last norm and head keep their weights bit for bit; the new model
shares no memory with the old one and has the same dtype, device, mode and attention backend;
nothing is random.
Out of scope: training, freezing the old blocks, and drawing new weights (copies keep the residual
scale of the old depth, see `init_weights`).
"""

import dataclasses

import torch

from moxin_lab.model.decoder import MoxinForCausalLM

RECIPES = ("identity", "interleaved", "top")


def layer_plan(num_old: int, num_new: int, recipe: str) -> list[tuple[int, bool]]:
    """For each block of the deeper model, bottom to top: the index of the old block from which its
    weights come, and whether the block is new.

    num_old, num_new: number of blocks before and after; with equal numbers there is no new block.
    Raises ValueError for an unknown recipe, for fewer blocks than before, and for more than twice
    as many: each recipe copies an old block at most once.
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
            f"{num_old} blocks cannot be expanded to {num_new}: recipe {recipe!r} copies each "
            f"block at most once, so {2 * num_old} is the most; expand in several steps"
        )
    if recipe == "top":
        return [(layer, False) for layer in range(num_old)] + [
            (layer, True) for layer in range(num_old - added, num_old)
        ]
    group_ends = {(group + 1) * num_old // added - 1 for group in range(added)}
    plan = []
    for layer in range(num_old):
        plan.append((layer, False))
        if layer in group_ends:
            plan.append((layer, True))
    return plan


def expand(model: MoxinForCausalLM, num_hidden_layers: int, recipe: str) -> MoxinForCausalLM:
    """A new model of `num_hidden_layers` blocks with the weights of `model`, by `recipe` (see the
    module's docstring).

    Every weight requires gradients. With `identity`, o_proj and down_proj of a new block receive
    gradients from the first step on; its other weights, which act only through these two, from the
    second step on. Raises ValueError as `layer_plan` does.
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
            is_zeroed = (
                is_new
                and recipe == "identity"
                and part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            )
            weights[f"model.layers.{layer}.{part}"] = (
                torch.zeros_like(tensor) if is_zeroed else tensor.clone()
            )
    config = dataclasses.replace(model.config, num_hidden_layers=num_hidden_layers)
    with torch.device("meta"):
        deeper = MoxinForCausalLM(
            config,
            attention_backend=model.attention_backend,
            activation_checkpointing=model.activation_checkpointing,
        )
    deeper.load_state_dict(weights, assign=True)
    deeper.tie_weights()
    deeper.requires_grad_(True)
    return deeper.train(model.training)
