"""Cross-entropy written over its logits: losses and gradient equal PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from moxin_lab.kernels.cross_entropy import cross_entropy_
from moxin_lab.training.loss import IGNORE_INDEX

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [5, 32, 101])
def test_losses_and_gradient_equal_those_of_pytorch(vocabulary: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(7, vocabulary, generator=generator) * 5).to(DEVICE).requires_grad_()
    labels = torch.randint(vocabulary, (7,), generator=generator).to(DEVICE)
    labels[2] = IGNORE_INDEX
    expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    expected.sum().backward()
    memory = logits.detach().clone()
    losses = cross_entropy_(memory, labels, smoothing, IGNORE_INDEX)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(memory, logits.grad, rtol=1e-5, atol=1e-6)


def test_large_and_infinitely_small_logits_give_no_nan() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [float("-inf"), 1.0, 2.0]], device=DEVICE)
    labels = torch.tensor([1, 2], device=DEVICE)
    losses = cross_entropy_(logits, labels, 0.0, IGNORE_INDEX)
    assert losses[0].item() == pytest.approx(2e4)
    assert losses.isfinite().all()
    assert logits.isfinite().all()
