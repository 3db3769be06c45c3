"""Muon: the update of PyTorch's own, which parameters get it, and steps that are left out."""

from types import SimpleNamespace

import pytest
import torch

from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.training.muon import Muon, muon_with_adamw, orthogonal

SHAPES = [(8, 8), (24, 8), (8, 24), (8, 8)]


def matrices(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype))
        for shape in SHAPES
    ]


def give_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(*parameter.shape, generator=generator)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
def test_the_update_is_that_of_pytorchs_muon():
    ours, theirs = matrices(), matrices()
    own = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        for parameters, optimizer in ((ours, own), (theirs, reference)):
            give_gradients(parameters, seed)
            optimizer.step()
    start = matrices()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        # Sums of bfloat16 in another order: 1 % of what the five steps moved.
        assert (mine - other).norm() < 0.01 * (mine - before).norm()


def test_singular_values_of_an_update_are_near_one():
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 40)).float())
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_step_with_found_inf_changes_nothing_and_the_next_one_goes_on():
    left_out, plain = matrices(), matrices()
    skipping, other = (Muon(p, lr=0.02, weight_decay=0.1) for p in (left_out, plain))
    for optimizer, parameters in ((skipping, left_out), (other, plain)):
        give_gradients(parameters, 0)
        optimizer.step()
    for parameter in left_out:
        parameter.grad.fill_(float("nan"))
    skipping.found_inf = torch.ones(())
    skipping.step()
    assert all(torch.equal(a, b) for a, b in zip(left_out, plain, strict=True))
    skipping.found_inf = torch.zeros(())
    for optimizer, parameters in ((skipping, left_out), (other, plain)):
        give_gradients(parameters, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(left_out, plain, strict=True))


def test_blocks_matrices_get_muon_and_all_others_adamw():
    config = MoxinConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    model = MoxinForCausalLM(config)
    settings = SimpleNamespace(
        learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-8, weight_decay=0.1
    )
    muon, adamw = muon_with_adamw(model, settings)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {
        names[id(p)]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]
    }
    assert len(by_muon) == 14 and all("_proj.weight" in name for name in by_muon)
    assert by_adamw["lm_head.weight"] == 0.1 and by_adamw["model.embed_tokens.weight"] == 0
    assert len(by_muon) + len(by_adamw) == len(names)


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="give it to AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0)
