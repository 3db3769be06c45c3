"""Pruning: which weights become zero, by the formulae of the paper, and that no other changes."""

import pytest
import torch

from moxin_lab.model import pruning
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM


@pytest.fixture
def model() -> MoxinForCausalLM:
    config = MoxinConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=None,
    )
    return MoxinForCausalLM(config, generator=torch.Generator().manual_seed(0))


def ids() -> torch.Tensor:
    return torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(1))


def weights(model: MoxinForCausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, "2:4"])
@pytest.mark.parametrize("method", pruning.METHODS)
def test_the_share_becomes_zero_and_nothing_else_changes(model, method: str, share) -> None:
    before = weights(model)
    pruning.prune(model, method, share, calibration=ids())
    names = {f"{name}.weight" for name, _ in pruning.matrices(model)}
    assert len(names) == 7 * 3
    for name, after in weights(model).items():
        gone = (after == 0) & (before[name] != 0)
        assert torch.equal(after[~gone], before[name][~gone]), name
        if name not in names:
            assert not gone.any(), name
        elif share == "2:4":
            assert (gone.reshape(-1, 4).sum(1) == 2).all(), name
        elif method == "wanda":
            assert (gone.sum(1) == round(share * after.shape[1])).all(), name
        else:
            assert gone.sum() == round(share * after.numel()), name
    half = 0.5 if share == "2:4" else share
    assert pruning.zero_share(model) == pytest.approx(half, abs=0.05)


def test_magnitude_takes_the_smallest_of_each_matrix(model) -> None:
    before = weights(model)
    pruning.prune(model, "magnitude", 0.4)
    for name, linear in pruning.matrices(model):
        old = before[f"{name}.weight"].abs()
        gone = linear.weight == 0
        assert old[gone].max() <= old[~gone].min()


@torch.no_grad()
def test_wanda_scores_by_the_inputs_that_pruned_blocks_below_pass_on(model) -> None:
    reference = MoxinForCausalLM(model.config)
    reference.load_state_dict(model.state_dict())
    reference.eval()
    pruning.prune(model, "wanda", 0.5, calibration=ids())
    # Block by block with the whole model each time, one output row after the other.
    for block in reference.model.layers:
        inputs: dict[torch.nn.Module, torch.Tensor] = {}
        hooks = [
            linear.register_forward_pre_hook(
                lambda module, arguments, inputs=inputs: inputs.__setitem__(module, arguments[0])
            )
            for linear in block.modules()
            if isinstance(linear, torch.nn.Linear)
        ]
        reference(ids())
        for hook in hooks:
            hook.remove()
        for linear, seen in inputs.items():
            norms = seen.reshape(-1, seen.shape[-1]).norm(dim=0)
            for row in linear.weight:
                order = (row.abs() * norms).argsort()
                row[order[: len(row) // 2]] = 0
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name] == 0, tensor == 0), name
    assert not any(module._forward_hooks for module in model.modules())


def test_a_share_a_method_or_calibration_that_is_wrong_is_named(model) -> None:
    with pytest.raises(ValueError, match="unknown method 'random': available are magnitude, wanda"):
        pruning.prune(model, "random", 0.5)
    for share in (1.0, -0.1, "4:8", None):
        with pytest.raises(ValueError, match="share is "):
            pruning.prune(model, "magnitude", share)
    with pytest.raises(ValueError, match="wanda needs calibration"):
        pruning.prune(model, "wanda", 0.5)
