"""flash-attn-4 is called with the layouts, windows and documents that it reads.

On the CPU a fake with the package's signatures computes the definition; the package itself is
compared on a GPU in test_window_attention.py.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from moxin_lab.kernels import flash
from moxin_lab.model.attention import attention, reference_attention
from moxin_lab.model.mask import AttentionMask


class FakePackage:
    """The two functions of `flash_attn.cute.interface` that are called, with names and layouts."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def _flash_attn_fwd(
        self,
        q,
        k,
        v,
        *,
        causal,
        window_size_left,
        window_size_right,
        cu_seqlens_q,
        cu_seqlens_k,
        return_lse,
    ):
        assert causal and return_lse and (window_size_left is None) == (window_size_right is None)
        self.calls.append({"shape": tuple(q.shape), "runs": cu_seqlens_q is not None})
        output = attend(q, k, v, window_size_left, cu_seqlens_q, cu_seqlens_k).contiguous()
        shape = (
            (q.shape[0], q.shape[2], q.shape[1])
            if cu_seqlens_q is None
            else (q.shape[1], q.shape[0])
        )
        return output, q.new_zeros(shape, dtype=torch.float32), None, None, None

    def _flash_attn_bwd(
        self,
        q,
        k,
        v,
        out,
        dout,
        lse,
        *,
        causal,
        window_size_left,
        window_size_right,
        cu_seqlens_q,
        cu_seqlens_k,
    ):
        assert causal and dout.is_contiguous() and out.shape == dout.shape == q.shape
        assert lse.shape == (
            (q.shape[0], q.shape[2], q.shape[1])
            if cu_seqlens_q is None
            else (q.shape[1], q.shape[0])
        )

        def gradients() -> tuple[Tensor, ...]:
            leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
            output = attend(*leaves, window_size_left, cu_seqlens_q, cu_seqlens_k)
            return torch.autograd.grad(output, leaves, dout)

        # In the thread of an operator autograd does not record, so another thread computes this.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(gradients).result()


def attend(
    q: Tensor, k: Tensor, v: Tensor, left: int | None, queries: Tensor | None, keys: Tensor | None
) -> Tensor:
    window = None if left is None else left + 1

    def attend_run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = torch.arange(k.shape[1])
        mask = AttentionMask(
            positions[k.shape[1] - q.shape[1] :], positions, window, False, False, first_key=0
        )
        return reference_attention(
            *(tensor.transpose(1, 2) for tensor in (q, k, v)), mask
        ).transpose(1, 2)

    if queries is None or keys is None:
        return attend_run(q, k, v)
    assert (
        queries.dtype == keys.dtype == torch.int32 and queries[-1] == len(q) and keys[-1] == len(k)
    )
    cuts = zip(q.tensor_split(queries[1:-1].long()), k.tensor_split(keys[1:-1].long()), strict=True)
    values = v.tensor_split(keys[1:-1].long())
    return torch.cat(
        [attend_run(a[None], b[None], c[None])[0] for (a, b), c in zip(cuts, values, strict=True)]
    )


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakePackage:
    fake = FakePackage()
    monkeypatch.setattr(flash, "package", lambda: fake)
    monkeypatch.setattr(flash, "unsupported_reason", lambda query: None)
    return fake


@pytest.mark.parametrize("window", [5, None])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
def test_output_and_gradients_equal_the_reference_with_windows_and_documents(
    package: FakePackage, packed: bool, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [
        torch.randn(2, heads, 23, 16, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]
    numbers = torch.stack(
        (
            torch.arange(23) * 3 // 23,
            torch.arange(23).clamp(max=15) // 4 - 4 * (torch.arange(23) > 19),
        )
    )
    mask = AttentionMask.build(
        23, sliding_window=window, document_ids=numbers if packed else None
    ).prepare("flash")
    gradient = torch.randn(2, 4, 23, 16, generator=generator)
    ours = attention(*tensors, mask, backend="flash")
    expected = attention(*tensors, mask, backend="reference")
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(ours, tensors, gradient),
        torch.autograd.grad(expected, tensors, gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert package.calls == [{"shape": (46, 4, 16) if packed else (2, 23, 4, 16), "runs": packed}]


def test_the_operators_declare_their_true_shapes_and_layouts(
    package: FakePackage,
) -> None:
    """`opcheck` of torch.library: what torch.compile is told about the operators is true."""
    tensors = [torch.randn(2, 8, heads, 16).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)]
    runs = torch.tensor([0, 3, 8, 12, 16], dtype=torch.int32)
    for borders in (None, runs):
        torch.library.opcheck(
            flash._flash,
            (*tensors, borders, borders, 5),
            test_utils=("test_schema", "test_faketensor"),
        )
