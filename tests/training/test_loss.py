"""The fused loss is the loss of the full logits: value, both gradients, every option, autocast,
compiled; and holds no logits.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from moxin_lab.training.loss import IGNORE_INDEX, linear_cross_entropy

TOKENS, WIDTH, VOCABULARY = 23, 12, 37


def inputs(dtype=torch.float64, ignored=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, TOKENS, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (1, TOKENS), generator=generator)
    if ignored:
        labels[0, [0, 7, 8, 22]] = IGNORE_INDEX
    return hidden, weight, labels


def full(hidden, weight, labels, **options):
    logits = (hidden @ weight.T).flatten(0, 1)
    return F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.flatten(), **options
    )


def gradients(call, *arguments, **options):
    hidden, weight, _ = arguments
    loss = call(*arguments, **options)
    # A factor above the loss must reach both gradients.
    return loss.detach(), torch.autograd.grad(loss * 3, (hidden, weight))


@pytest.mark.parametrize("chunk_tokens", [1, 5, TOKENS, 4096])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_and_both_gradients_are_those_of_the_full_logits_in_float64(
    chunk_tokens, reduction, label_smoothing, ignored
):
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    expected, expected_gradients = gradients(full, *inputs(ignored=ignored), **options)
    loss, found = gradients(
        linear_cross_entropy, *inputs(ignored=ignored), chunk_tokens=chunk_tokens, **options
    )
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for ours, theirs in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_gradient_is_that_of_finite_differences(label_smoothing):
    hidden, weight, labels = inputs()

    def call(hidden, weight):
        return linear_cross_entropy(
            hidden, weight, labels, chunk_tokens=7, label_smoothing=label_smoothing
        )

    assert torch.autograd.gradcheck(call, (hidden, weight))


def test_float32_differs_by_rounding_only():
    expected, expected_gradients = gradients(full, *inputs(torch.float32))
    loss, found = gradients(linear_cross_entropy, *inputs(torch.float32), chunk_tokens=5)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
def test_bfloat16_is_no_further_from_the_truth_than_the_full_logits_are(autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    exact, exact_gradients = gradients(
        full, *[x.double() if x.is_floating_point() else x for x in inputs(dtype)]
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, plain_gradients = gradients(full, *inputs(dtype))
        loss, found = gradients(linear_cross_entropy, *inputs(dtype), chunk_tokens=5)
    assert loss.dtype == torch.float32
    assert abs(loss - exact) <= 1.1 * abs(plain - exact) + 1e-3
    for ours, theirs, truth in zip(found, plain_gradients, exact_gradients, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm() + 1e-3 * truth.norm()


def test_compiled_as_one_graph_it_gives_the_same():
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    expected, expected_gradients = gradients(full, *inputs(), label_smoothing=0.1)
    loss, found = gradients(compiled, *inputs(), chunk_tokens=7, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


class Largest(TorchDispatchMode):
    """The most numbers of any tensor made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return output


def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_weight():
    sizes = {}
    for name, call, options in (
        ("full", full, {}),
        ("fused", linear_cross_entropy, {"chunk_tokens": 5}),
    ):
        with Largest() as watch:
            gradients(call, *inputs(), **options)
        sizes[name] = watch.numbers
    assert sizes == {"full": TOKENS * VOCABULARY, "fused": max(5, WIDTH) * VOCABULARY}


def test_without_gradients_only_the_loss_is_computed_and_frozen_parts_get_none():
    hidden, weight, labels = inputs()
    expected = full(hidden, weight, labels)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)
    (expected_gradient,) = torch.autograd.grad(expected, hidden)
    loss = linear_cross_entropy(hidden, weight.detach(), labels)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], expected_gradient)


def test_no_label_at_all_gives_a_sum_of_zero_and_a_mean_of_nan_as_in_torch():
    hidden, weight, labels = inputs()
    labels.fill_(IGNORE_INDEX)
    loss, found = gradients(
        linear_cross_entropy, hidden, weight, labels, reduction="sum", chunk_tokens=5
    )
    assert loss == 0 and all(not gradient.any() for gradient in found)
    assert (
        full(hidden, weight, labels).isnan()
        and linear_cross_entropy(hidden, weight, labels).isnan()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": torch.zeros(1, 3, dtype=torch.long)},
            r"expected \[\.\.\., C\], \[V, C\] and \[\.\.\.\]",
        ),
        ({"weight": torch.zeros(VOCABULARY, WIDTH + 1)}, "expected"),
        ({"chunk_tokens": 0}, "chunk_tokens 0 must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 in \[0, 1\)"),
        ({"reduction": "none"}, "reduction is 'none': it must be 'mean' or 'sum'"),
        ({"weight": torch.zeros(VOCABULARY, WIDTH)}, "they must be equal, or under autocast"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    hidden, weight, labels = inputs()
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(
            **{"hidden_states": hidden, "weight": weight, "labels": labels, **change}
        )
