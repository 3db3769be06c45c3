"""The kernels with their real tile sizes and dtypes, on a GPU; tests/model/test_attention.py runs
small sizes in the interpreter.
"""

import pytest
import torch
from torch import Tensor

from moxin_lab.kernels import flash, window_attention
from moxin_lab.model.attention import attention, reference_attention
from moxin_lab.model.mask import AttentionMask

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="16-bit kernels at full tile size need a GPU; runs on the GPU machine",
)


def inputs(
    tokens: int, keys: int, head_dim: int, dtype: torch.dtype, kv_heads: int = 2
) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(tokens + keys)
    shapes = (
        (2, tokens, 8, head_dim),
        (2, keys, kv_heads, head_dim),
        (2, keys, kv_heads, head_dim),
    )
    drawn = [
        torch.randn(shape, device="cuda", dtype=dtype, generator=generator) for shape in shapes
    ]
    return [tensor.transpose(1, 2).requires_grad_() for tensor in drawn]


def documents(tokens: int) -> Tensor:
    position = torch.arange(tokens, device="cuda")
    return torch.stack(
        (
            position * 3 // tokens,
            torch.where(position < tokens * 3 // 4, position * 5 // tokens, -1),
        )
    )


def results(call, tensors: list[Tensor], gradient: Tensor | None) -> list[Tensor]:
    output = call(*tensors)
    if gradient is None:
        return [output.detach()]
    return [output.detach(), *torch.autograd.grad(output, tensors, gradient.to(output.dtype))]


@needs_gpu
@pytest.mark.parametrize("backend", ["triton", "flash", "flex"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("tokens", "window", "packed"),
    [(1000, 300, False), (777, None, True), (1000, 300, True), (129, 4096, False)],
)
def test_sixteen_bit_kernels_are_no_further_from_the_truth_than_plain_operations(
    tokens: int, window: int | None, packed: bool, head_dim: int, dtype: torch.dtype, backend: str
) -> None:
    """Distance to float64 of the output and of every gradient, against that of plain operations in
    the same dtype.
    """
    if backend == "flash" and isinstance(flash.package(), str):
        pytest.skip(str(flash.package()))
    if backend == "flex" and (dtype, head_dim, window) != (torch.bfloat16, 128, 300):
        pytest.skip("FlexAttention compiles every shape for half a minute: two of them run")
    tensors = inputs(tokens, tokens, head_dim, dtype)
    numbers = documents(tokens) if packed else None
    mask = AttentionMask.build(tokens, sliding_window=window, document_ids=numbers, device="cuda")
    gradient = torch.randn_like(tensors[0])
    ours = results(lambda *t: attention(*t, mask, backend=backend), tensors, gradient)
    plain = results(lambda *t: reference_attention(*t, mask), tensors, gradient)
    exact = results(
        lambda *t: reference_attention(*t, mask),
        [t.detach().double().requires_grad_() for t in tensors],
        gradient,
    )
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        error, yardstick = ((x.double() - truth).norm() / truth.norm() for x in (mine, theirs))
        assert mine.isfinite().all() and error <= 1.2 * yardstick


@needs_gpu
def test_flash_attn_4_equals_the_reference_for_a_chunk_over_a_padded_past() -> None:
    """Queries at the end of more keys; padding keys before the chunk form a run without queries."""
    if isinstance(flash.package(), str):
        pytest.skip(str(flash.package()))
    query, key, value = (tensor.detach() for tensor in inputs(900, 900, 128, torch.bfloat16))
    positions = torch.arange(900, device="cuda")
    starts = torch.minimum(torch.tensor([[450], [850]], device="cuda"), positions[None, 800:]).int()
    mask = AttentionMask(
        positions[800:], positions[400:], 256, False, False, starts=starts, first_key=400
    )
    chunk = query[:, :, 800:], key[:, :, 400:], value[:, :, 400:]
    ours = attention(*chunk, mask, backend="flash")
    torch.testing.assert_close(
        ours, attention(*chunk, mask, backend="reference"), rtol=2e-2, atol=2e-2
    )


@needs_gpu
def test_the_same_inputs_give_the_same_bytes_and_every_group_of_heads_the_same_gradient() -> None:
    """Deterministic with any workspace; without one, dQ is computed without stored dS^T."""
    tensors = inputs(700, 700, 128, torch.bfloat16)
    gradient = torch.randn_like(tensors[0])
    output, log_sum = window_attention._attention(*tensors, None, None, 256)
    runs = [
        window_attention._attention_backward(
            gradient, *tensors, output, log_sum, None, None, 256, workspace
        )
        for workspace in (2**30, 2**30, 2**24, 0)
    ]
    for other in runs[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    for a, b in zip(runs[0], runs[3], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@needs_gpu
def test_a_chunk_over_a_longer_past_equals_the_whole() -> None:
    query, key, value = (tensor.detach() for tensor in inputs(900, 900, 128, torch.bfloat16))
    whole = attention(
        query,
        key,
        value,
        AttentionMask.build(900, sliding_window=256, device="cuda"),
        backend="triton",
    )
    positions = torch.arange(900, device="cuda")
    mask = AttentionMask(positions[800:], positions[400:], 256, False, False, first_key=400)
    part = attention(query[:, :, 800:], key[:, :, 400:], value[:, :, 400:], mask, backend="triton")
    torch.testing.assert_close(part, whole[:, :, 800:], rtol=1e-2, atol=1e-2)


def test_the_result_does_not_depend_on_the_workspace() -> None:
    """A small workspace changes how many heads store dS^T at once, never the result (on the CPU in
    Triton's interpreter, in float32).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    query, key, value, gradient = (
        torch.randn(2, heads, 50, 16, generator=generator).to(device) for heads in (4, 2, 2, 4)
    )
    starts = torch.zeros(2, 50, dtype=torch.int32, device=device)
    starts[:, 20:] = 20
    ends = torch.full_like(starts, 49)
    ends[:, :20] = 19
    output, log_sum = window_attention._attention(query, key, value, starts, ends, 13)
    runs = [
        window_attention._attention_backward(
            gradient, query, key, value, output, log_sum, starts, ends, 13, workspace
        )
        for workspace in (2**26, 2**16, 0)
    ]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
