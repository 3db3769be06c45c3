"""AdamW as one kernel a tensor: the weights and the state are PyTorch's."""

import pytest
import torch

from moxin_lab.kernels.adamw import AdamW

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONSTANTS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 31), (130,), (1,), (0,)]
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype))
        for shape in shapes
    ]


def train(optimizer: torch.optim.Optimizer, steps: range, *, skip: int | None = None) -> None:
    """Steps with gradients that depend on the step alone; `skip` names a parameter without gradient
    in the first of them.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for place, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=generator).to(weight)
            weight.grad = None if place == skip and step == steps[0] else gradient
        optimizer.step()


def groups(weights: list[torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": weights[:1], "weight_decay": 0.1},
        {"params": weights[1:], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_state_equal_those_of_pytorch_also_where_a_gradient_is_missing_once(
    dtype: torch.dtype,
) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    first, second = (
        AdamW(groups(ours), **CONSTANTS),
        torch.optim.AdamW(groups(theirs), **CONSTANTS, fused=True),
    )
    # Triton's interpreter cuts float32 off where a GPU rounds to bfloat16: one step there, so that
    # this is one unit at most.
    steps = range(1 if dtype == torch.bfloat16 and DEVICE == "cpu" else 5)
    train(first, steps, skip=1)
    train(second, steps, skip=1)
    tolerance = (
        {"rtol": 2e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
    )
    for mine, peer in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, peer, **tolerance)
        for name in second.state[peer]:
            torch.testing.assert_close(
                first.state[mine][name], second.state[peer][name], **tolerance
            )


@pytest.mark.parametrize("ours_first", [True, False])
def test_either_continues_a_run_of_the_other(ours_first: bool) -> None:
    whole, parts = parameters(torch.float32), parameters(torch.float32)
    train(torch.optim.AdamW(groups(whole), **CONSTANTS, fused=True), range(6))
    kinds = [AdamW, lambda groups, **constants: torch.optim.AdamW(groups, **constants, fused=True)]
    begin, end = kinds if ours_first else kinds[::-1]
    first = begin(groups(parts), **CONSTANTS)
    train(first, range(3))
    second = end(groups(parts), **CONSTANTS)
    second.load_state_dict(first.state_dict())
    train(second, range(3, 6))
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_what_it_does_not_do_is_refused() -> None:
    with pytest.raises(ValueError, match="amsgrad"):
        AdamW(parameters(torch.float32), amsgrad=True)
    optimizer = AdamW([torch.nn.Parameter(torch.randn(4, 6, device=DEVICE).T)])
    with pytest.raises(ValueError, match="not contiguous"):
        train(optimizer, range(1))
    optimizer = AdamW(parameters(torch.float32))
    optimizer.grad_scale = torch.ones(())
    with pytest.raises(RuntimeError, match="gradient scaler"):
        train(optimizer, range(1))
