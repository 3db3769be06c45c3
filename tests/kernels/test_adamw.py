"""AdamW as one kernel per tensor: weights and state equal PyTorch's."""

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
    """Steps with gradients that depend on the step alone. `skip` is the index of a parameter that
    has no gradient in the first step.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for index, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=generator).to(weight)
            weight.grad = None if index == skip and step == steps[0] else gradient
        optimizer.step()


def groups(weights: list[torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": weights[:1], "weight_decay": 0.1},
        {"params": weights[1:], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_state_equal_pytorchs_even_if_a_gradient_is_missing_once(
    dtype: torch.dtype,
) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    first, second = (
        AdamW(groups(ours), **CONSTANTS),
        torch.optim.AdamW(groups(theirs), **CONSTANTS, fused=True),
    )
    # Triton's interpreter truncates float32 to bfloat16 where a GPU rounds: one step there, so that
    # the difference is at most one unit in the last place.
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
    uninterrupted, parts = parameters(torch.float32), parameters(torch.float32)
    train(torch.optim.AdamW(groups(uninterrupted), **CONSTANTS, fused=True), range(6))
    kinds = [AdamW, lambda groups, **constants: torch.optim.AdamW(groups, **constants, fused=True)]
    begin, end = kinds if ours_first else kinds[::-1]
    first = begin(groups(parts), **CONSTANTS)
    train(first, range(3))
    second = end(groups(parts), **CONSTANTS)
    second.load_state_dict(first.state_dict())
    train(second, range(3, 6))
    for ours, expected in zip(parts, uninterrupted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_a_step_with_found_inf_changes_nothing_as_in_pytorch(skipped: int) -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizers = (
        AdamW(groups(ours), **CONSTANTS),
        torch.optim.AdamW(groups(theirs), **CONSTANTS, fused=True),
    )
    for step in range(4):
        for optimizer, weights in zip(optimizers, (ours, theirs), strict=True):
            generator = torch.Generator().manual_seed(step)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(weight)
                if step == skipped and weight.numel() > 1:
                    weight.grad.view(-1)[1] = float("nan")
            before = [weight.detach().clone() for weight in weights]
            optimizer.found_inf = torch.tensor(float(step == skipped), device=DEVICE)
            optimizer.step()
            if step == skipped:
                for weight, kept in zip(weights, before, strict=True):
                    assert torch.equal(weight, kept)
    for mine, peer in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, peer, rtol=2e-6, atol=1e-7)
        for name, expected in optimizers[1].state[peer].items():
            torch.testing.assert_close(
                optimizers[0].state[mine][name], expected, rtol=2e-6, atol=1e-7
            )


def test_unsupported_options_raise_errors() -> None:
    with pytest.raises(ValueError, match="amsgrad"):
        AdamW(parameters(torch.float32), amsgrad=True)
    optimizer = AdamW([torch.nn.Parameter(torch.randn(4, 6, device=DEVICE).T)])
    with pytest.raises(ValueError, match="not contiguous"):
        train(optimizer, range(1))
    optimizer = AdamW(parameters(torch.float32))
    optimizer.grad_scale = torch.ones(())
    with pytest.raises(RuntimeError, match="gradient scaler"):
        train(optimizer, range(1))
