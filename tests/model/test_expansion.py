"""Depth expansion: identity blocks change no logit and can learn, copies equal their source, and
the result is an ordinary checkpoint.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import from_pretrained, save_pretrained
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.expansion import RECIPES, expand, layer_plan

CONFIG = MoxinConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    max_position_embeddings=128,
    initializer_range=0.2,
    mlp_dropout=0.1,
)


@pytest.fixture
def model() -> MoxinForCausalLM:
    return MoxinForCausalLM(CONFIG, generator=torch.Generator().manual_seed(5)).eval()


def ids() -> Tensor:
    return torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(0))


def test_the_plans_from_32_to_36_blocks_insert_these_layers() -> None:
    spread = []
    for first in (0, 8, 16, 24):
        spread += [(layer, False) for layer in range(first, first + 8)]
        spread.append((first + 7, True))
    assert layer_plan(32, 36, "identity") == spread
    assert layer_plan(32, 36, "interleaved") == spread
    top = [(layer, False) for layer in range(32)] + [(28, True), (29, True), (30, True), (31, True)]
    assert layer_plan(32, 36, "top") == top


@given(old=st.integers(1, 80), share=st.floats(0, 1), recipe=st.sampled_from(RECIPES))
def test_a_plan_keeps_the_old_blocks_in_order_and_spreads_the_new_ones(
    old: int, share: float, recipe: str
) -> None:
    added = round(share * old)
    plan = layer_plan(old, old + added, recipe)
    assert [source for source, is_new in plan if not is_new] == list(range(old))
    sources = [source for source, is_new in plan if is_new]
    assert len(sources) == len(set(sources)) == added
    if recipe == "top":
        assert sources == list(range(old - added, old))
    elif added:
        sizes = [after - before for before, after in zip([-1, *sources], sources, strict=False)]
        assert sum(sizes) == old
        assert max(sizes) - min(sizes) <= 1
        assert all(
            plan[index - 1] == (source, False)
            for index, (source, is_new) in enumerate(plan)
            if is_new
        )


@pytest.mark.parametrize("num_layers", [4, 5, 6, 7, 8])
@torch.no_grad()
def test_identity_blocks_leave_the_logits_as_they_were_to_the_bit(
    model: MoxinForCausalLM, num_layers: int
) -> None:
    deeper = expand(model, num_layers, "identity")
    assert len(deeper.model.layers) == deeper.config.num_hidden_layers == num_layers
    assert torch.equal(deeper(ids()), model(ids()))


@pytest.mark.parametrize("recipe", ["interleaved", "top"])
@torch.no_grad()
def test_plain_copies_change_the_logits(model: MoxinForCausalLM, recipe: str) -> None:
    assert (expand(model, 6, recipe)(ids()) - model(ids())).abs().max() > 0.1


@pytest.mark.parametrize("recipe", RECIPES)
def test_blocks_are_copies_of_their_source_and_share_no_memory(
    model: MoxinForCausalLM, recipe: str
) -> None:
    deeper = expand(model, 7, recipe)
    for layer, (source, is_new) in enumerate(layer_plan(4, 7, recipe)):
        old = dict(model.model.layers[source].named_parameters())
        for name, ours in deeper.model.layers[layer].named_parameters():
            zeroed = (
                recipe == "identity"
                and is_new
                and name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            )
            assert torch.equal(ours, torch.zeros_like(ours) if zeroed else old[name]), (
                f"block {layer}, {name}"
            )
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(deeper.state_dict()[name], model.state_dict()[name])
    memory = [tensor.data_ptr() for one in (model, deeper) for tensor in one.parameters()]
    assert len(set(memory)) == len(memory)


def test_an_identity_block_learns_its_output_projections_first_and_the_rest_from_the_second_step(
    model: MoxinForCausalLM,
) -> None:
    deeper = expand(model, 5, "identity").train()
    block = deeper.model.layers[4]
    outputs = {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    optimizer = torch.optim.SGD(deeper.parameters(), lr=0.1)

    def step() -> set[str]:
        optimizer.zero_grad()
        logits = deeper(ids()[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids()[:, 1:].flatten()).backward()
        optimizer.step()
        return {name for name, weight in block.named_parameters() if bool(weight.grad.ne(0).any())}

    assert step() == outputs
    assert block.self_attn.o_proj.weight.ne(0).all()
    assert block.mlp.down_proj.weight.ne(0).all()
    assert step() == {name for name, _ in block.named_parameters()}


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_the_deeper_model_saves_and_loads_through_transformers(
    model: MoxinForCausalLM, tmp_path: Path, recipe: str
) -> None:
    deeper = expand(model, 6, recipe)
    folder = save_pretrained(deeper, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.config.num_hidden_layers == 6
    torch.testing.assert_close(theirs(ids()).logits, deeper(ids()), rtol=0, atol=1e-5)
    assert torch.equal(from_pretrained(folder)(ids()), deeper(ids()))


def test_dtype_mode_backend_and_configuration_are_kept(model: MoxinForCausalLM) -> None:
    model.to(torch.bfloat16).train().requires_grad_(False)
    model.attention_backend = "reference"
    deeper = expand(model, 5, "top")
    assert {tensor.dtype for tensor in deeper.parameters()} == {torch.bfloat16}
    assert deeper.training
    assert all(parameter.requires_grad for parameter in deeper.parameters())
    assert deeper.attention_backend == "reference"
    assert deeper.config.mlp_dropout == 0.1
    assert model.config.num_hidden_layers == len(model.model.layers) == 4


@pytest.mark.parametrize("recipe", RECIPES)
def test_too_few_and_too_many_blocks_raise_an_error_with_both_numbers(
    model: MoxinForCausalLM, recipe: str
) -> None:
    with pytest.raises(
        ValueError, match="4 blocks cannot be expanded to 3: expansion only adds blocks"
    ):
        expand(model, 3, recipe)
    with pytest.raises(
        ValueError, match=rf"4 blocks cannot be expanded to 9: recipe '{recipe}' .* 8 is the most"
    ):
        expand(model, 9, recipe)


def test_an_unknown_recipe_names_those_available(model: MoxinForCausalLM) -> None:
    with pytest.raises(
        ValueError, match="unknown recipe 'solar': available are identity, interleaved, top"
    ):
        expand(model, 6, "solar")
