"""Attention sees its window and its document exactly, and all backends compute the same function.

On a machine with a GPU the backends run on it; without one, `triton` runs in Triton's interpreter
(tests/conftest.py asks for it).
"""

import pytest
import torch
from torch import Tensor

from moxin_lab.model.attention import (
    BACKENDS,
    attention,
    backend_unsupported_reason,
    choose_backend,
)
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.mask import AttentionMask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WINDOW = 8
LENGTHS = [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 5 * WINDOW + 3]
DTYPES = {
    "reference": torch.float64,
    "sdpa": torch.float64,
    "flex": torch.float32,
    "triton": torch.float32,
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
# flash supports 16-bit dtypes only: tests/kernels.
EXACT = [name for name in BACKENDS if name != "flash"]
# FlexAttention has no backward on the CPU.
WITH_GRADIENT = [name for name in EXACT if name != "flex" or DEVICE == "cuda"]


@pytest.fixture(autouse=True)
def float32_products_in_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def heads(
    length: int, *, num_heads: int = 4, num_kv_heads: int = 2, backend: str = "reference"
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [
        (2, num_heads, length, 16),
        (2, num_kv_heads, length, 16),
        (2, num_kv_heads, length, 16),
    ]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(DEVICE, DTYPES[backend]).requires_grad_() for tensor in drawn]


def documents(length: int) -> Tensor:
    """Document ids of two rows: three documents, and two documents followed by padding."""
    row = torch.arange(length, device=DEVICE)
    return torch.stack(
        (row * 3 // length, torch.where(row < length * 2 // 3, row * 2 // length, -1))
    )


def output_and_gradients(
    backend: str, length: int, kv_heads: int, mask: AttentionMask, gradient: bool
) -> list[Tensor]:
    inputs = heads(length, num_kv_heads=kv_heads, backend=backend)
    if not gradient:
        return [attention(*(tensor.detach() for tensor in inputs), mask, backend=backend)]
    output = attention(*inputs, mask, backend=backend)
    output.cos().sum().backward()
    return [output.detach(), *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize("backend", [name for name in EXACT if name != "reference"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_backend_equals_reference_forward_and_backward(
    length: int, kv_heads: int, packed: bool, backend: str
) -> None:
    if backend == "flex" and DEVICE == "cuda" and (kv_heads, length) != (2, WINDOW + 1):
        # It compiles again for every shape, and torch 2.11 finds no kernel for four heads over one
        # at 43 tokens.
        pytest.skip("FlexAttention: one shape runs on a GPU, all of them on the CPU")
    numbers = documents(length) if packed else None
    mask = AttentionMask.build(length, sliding_window=WINDOW, document_ids=numbers, device=DEVICE)
    gradient = backend in WITH_GRADIENT
    ours = output_and_gradients(backend, length, kv_heads, mask, gradient)
    expected = output_and_gradients("reference", length, kv_heads, mask, gradient)
    tolerance = TOLERANCES[DTYPES[backend]]
    for tensor, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(tensor.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", [name for name in EXACT if name != "reference"])
@pytest.mark.parametrize("window", [5, None])
def test_backend_equals_reference_where_queries_are_the_last_of_more_keys(
    window: int | None, backend: str
) -> None:
    """A chunk of a longer text over a cache, the first row padded on the left."""
    query, key, value = (tensor.detach() for tensor in heads(29, backend=backend))
    positions = torch.arange(40, 69, device=DEVICE)
    starts = torch.minimum(torch.tensor([[45], [0]], device=DEVICE), positions[None, 18:]).int()
    mask = AttentionMask(
        positions[18:], positions, window, False, False, starts=starts, first_key=40
    )
    ours = attention(query[:, :, 18:], key, value, mask, backend=backend)
    expected = attention(
        query[:, :, 18:].double(), key.double(), value.double(), mask, backend="reference"
    )
    tolerance = TOLERANCES[DTYPES[backend]]
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_document_is_a_run_of_equal_ids_and_padding_sees_only_itself() -> None:
    numbers = torch.tensor([[4, 4, 2, 4, 4, -1, -1]], device=DEVICE)
    seen = AttentionMask.build(7, sliding_window=None, document_ids=numbers, device=DEVICE).dense[
        0, 0
    ]
    rows = [[0], [0, 1], [2], [3], [3, 4], [5], [6]]
    assert [row.nonzero()[:, 0].tolist() for row in seen] == rows


def attention_by_runs(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
    """What a kernel for rows laid end to end computes from `document_runs`: each run on its own,
    with its last query at its last key.
    """
    queries, keys = mask.document_runs
    rows = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
    output = torch.full_like(rows[0], torch.nan)
    for a, b, c, d in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
        positions = torch.arange(d - c, device=query.device)
        alone = AttentionMask(
            positions[len(positions) - (b - a) :],
            positions,
            mask.sliding_window,
            False,
            False,
            first_key=0,
        )
        parts = [
            t[lo:hi].transpose(0, 1)[None]
            for t, lo, hi in zip(rows, (a, c, c), (b, d, d), strict=True)
        ]
        if b > a:
            output[a:b] = attention(*parts, alone, backend="reference")[0].transpose(0, 1)
    return output.unflatten(0, (len(query), -1)).transpose(1, 2)


@pytest.mark.parametrize("length", LENGTHS)
def test_document_runs_contain_what_each_document_sees(length: int) -> None:
    """The runs are passed to flash-attn-4, whose kernels are compared on a GPU (tests/kernels)."""
    query, key, value = (tensor.detach() for tensor in heads(length))
    mask = AttentionMask.build(
        length, sliding_window=WINDOW, document_ids=documents(length), device=DEVICE
    )
    torch.testing.assert_close(
        attention_by_runs(query, key, value, mask),
        attention(query, key, value, mask, backend="reference"),
    )
    assert AttentionMask.build(length, sliding_window=WINDOW, device=DEVICE).document_runs is None


@pytest.mark.parametrize("padding", [(45, 0), (40, 61), (60, 58), (66, 69)])
@pytest.mark.parametrize("window", [5, None])
def test_runs_of_a_chunk_omit_the_padding_before_it(
    window: int | None, padding: tuple[int, int]
) -> None:
    query, key, value = (tensor.detach() for tensor in heads(29))
    positions = torch.arange(40, 69, device=DEVICE)
    starts = torch.minimum(
        torch.tensor(padding, device=DEVICE)[:, None], positions[None, 18:]
    ).int()
    mask = AttentionMask(
        positions[18:], positions, window, False, False, starts=starts, first_key=40
    )
    torch.testing.assert_close(
        attention_by_runs(query[:, :, 18:], key, value, mask),
        attention(query[:, :, 18:], key, value, mask, backend="reference"),
    )


def test_reference_equals_a_loop_over_queries() -> None:
    length, window = 21, 5
    query, key, value = heads(length)
    row_documents = documents(length)
    mask = AttentionMask.build(
        length, sliding_window=window, document_ids=row_documents, device=DEVICE
    )
    output = attention(query, key, value, mask, backend="reference")
    for row in range(2):
        for head in range(4):
            for i in range(length):
                number = int(row_documents[row, i])
                seen = [
                    j
                    for j in range(max(0, i - window + 1), i + 1)
                    if j == i or (number >= 0 and row_documents[row, j] == number)
                ]
                scores = (
                    torch.stack([query[row, head, i] @ key[row, head // 2, j] for j in seen])
                    / 16**0.5
                )
                expected = scores.softmax(0) @ torch.stack([value[row, head // 2, j] for j in seen])
                torch.testing.assert_close(output[row, head, i], expected)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_key_just_outside_the_window_changes_nothing_and_just_inside_does(
    length: int, backend: str
) -> None:
    query, key, value = (tensor.detach() for tensor in heads(length, backend=backend))
    mask = AttentionMask.build(length, sliding_window=WINDOW, device=DEVICE)
    before = attention(query, key, value, mask, backend=backend)[:, :, -1]
    for distance in {0, 1, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, length - 1} & set(
        range(length)
    ):
        changed_key, changed_value = key.clone(), value.clone()
        changed_key[:, :, -1 - distance] += 1.0
        changed_value[:, :, -1 - distance] += 1.0
        after = attention(query, changed_key, changed_value, mask, backend=backend)[:, :, -1]
        assert torch.equal(after, before) == (distance >= WINDOW), f"key {distance} tokens back"


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_gradients_equal_finite_differences(backend: str) -> None:
    mask = AttentionMask.build(7, sliding_window=3, document_ids=documents(7), device=DEVICE)
    assert torch.autograd.gradcheck(
        lambda *inputs: attention(*inputs, mask, backend=backend), heads(7)
    )


def tiny(**changes: object) -> MoxinForCausalLM:
    values = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    model = MoxinForCausalLM(
        MoxinConfig(**{**values, **changes}), generator=torch.Generator().manual_seed(3)
    )
    return model.eval()


@pytest.mark.parametrize("backend", EXACT)
def test_packed_documents_get_the_logits_they_get_alone(backend: str) -> None:
    model = tiny().to(DEVICE)
    model.attention_backend = backend
    ids = torch.randint(61, (1, 40), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    numbers = torch.tensor([[0] * 5 + [1] * 20 + [2] * 12 + [-1] * 3], device=DEVICE)
    with torch.no_grad():
        packed = model(ids, document_ids=numbers)
        for number in range(3):
            inside = numbers[0] == number
            torch.testing.assert_close(packed[:, inside], model(ids[:, inside]), rtol=0, atol=1e-5)
    assert packed.isfinite().all()


def test_packed_documents_never_see_each_other() -> None:
    model = tiny()
    ids = torch.randint(61, (1, 30), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(30)[None] // 10
    other = ids.clone()
    other[:, 10:20] = (other[:, 10:20] + 1) % 61
    with torch.no_grad():
        before, after = model(ids, document_ids=numbers), model(other, document_ids=numbers)
    assert torch.equal(before[:, :10], after[:, :10])
    assert torch.equal(before[:, 20:], after[:, 20:])
    assert not torch.equal(before[:, 10:20], after[:, 10:20])


def test_gradients_stay_inside_a_document() -> None:
    model = tiny()
    # Every token occurs once, so each row of the embedding's gradient belongs to one position.
    ids = torch.arange(20)[None]
    model(ids, document_ids=ids // 10)[:, 10:].square().sum().backward()
    reached = model.model.embed_tokens.weight.grad.abs().sum(dim=1) > 0
    assert not reached[:10].any()
    assert reached[10:20].all()


def test_no_token_sees_a_later_one() -> None:
    model = tiny()
    ids = torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 17:] = (other[:, 17:] + 1) % 61
    with torch.no_grad():
        assert torch.equal(model(ids)[:, :17], model(other)[:, :17])


def test_influence_reaches_exactly_window_minus_one_tokens_per_block() -> None:
    """After L blocks a token depends on the L x (W - 1) tokens before it and itself, no further."""
    model = tiny().double()
    length = 40
    states = model.model.embed_tokens(torch.arange(length)[None]).detach().requires_grad_()
    model.model.embed_tokens.forward = lambda ids: states
    model(torch.arange(length)[None])[0, -1].sum().backward()
    reached = states.grad[0].abs().sum(dim=1) > 0
    assert reached.tolist() == [
        length - 1 - position <= 3 * (WINDOW - 1) for position in range(length)
    ]


def test_dropout_acts_in_training_only() -> None:
    model = tiny(attention_dropout=0.5, mlp_dropout=0.5)
    ids = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids), model(ids))
        assert torch.equal(model(ids), tiny()(ids))
        model.train()
        assert not torch.equal(model(ids), model(ids))


def test_same_seed_same_weights_and_residual_outputs_scaled_by_depth() -> None:
    first, again = (
        tiny(hidden_size=64, num_hidden_layers=8),
        tiny(hidden_size=64, num_hidden_layers=8),
    )
    for (name, ours), other in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, other), name
    again.init_weights(torch.Generator().manual_seed(4))
    assert not torch.equal(first.lm_head.weight, again.lm_head.weight)
    block = first.model.layers[2]
    assert block.self_attn.o_proj.weight.std().item() == pytest.approx(0.2 / 16**0.5, rel=0.1)
    assert block.mlp.down_proj.weight.std().item() == pytest.approx(0.2 / 16**0.5, rel=0.1)
    assert block.mlp.up_proj.weight.std().item() == pytest.approx(0.2, rel=0.1)
    assert (block.input_layernorm.weight == 1).all()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_runs_forward_and_backward(precision: torch.dtype) -> None:
    """Scales larger than tiny train in mixed precision."""
    model = tiny()
    ids = torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(0))
    exact = model(ids)
    with torch.autocast("cpu", precision):
        logits = model(ids)
    logits.float().square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )
    assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_unknown_backend_names_those_available() -> None:
    with pytest.raises(
        ValueError,
        match="unknown attention backend 'cudnn': available are auto, reference, sdpa, flex",
    ):
        MoxinForCausalLM(tiny().config, attention_backend="cudnn")
    with pytest.raises(ValueError, match="available are auto"):
        attention(
            *heads(5), AttentionMask.build(5, sliding_window=3, device=DEVICE), backend="cudnn"
        )


def test_a_backend_that_cannot_run_says_why() -> None:
    mask = AttentionMask.build(5, sliding_window=3, device=DEVICE)
    with pytest.raises(ValueError, match=r"triton backend cannot run: dtype is torch\.float64"):
        attention(*heads(5), mask, backend="triton")
    query, key, value = heads(5, backend="triton")
    with pytest.raises(ValueError, match="triton backend cannot run: head_dim is 6"):
        attention(query[..., :6], key[..., :6], value[..., :6], mask, backend="triton")
    with pytest.raises(
        ValueError, match=r"triton backend has no dropout, and attention_dropout is 0\.1"
    ):
        attention(query, key, value, mask, backend="triton", dropout_p=0.1)
    with pytest.raises(ValueError, match=r"flash backend cannot run: (flash-attn-4|dtype)"):
        attention(query, key, value, mask, backend="flash")
    by_slot = AttentionMask(mask.query_positions, mask.key_positions, 3, False, False)
    with pytest.raises(ValueError, match="triton backend needs keys in order"):
        attention(query, key, value, by_slot, backend="triton")
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="FlexAttention has no backward on the CPU"):
            attention(query, key, value, mask, backend="flex")


def test_auto_chooses_sdpa_on_the_cpu_and_kernels_only_if_they_can_run() -> None:
    plain = AttentionMask.build(5, sliding_window=3, device=DEVICE)
    packed = AttentionMask.build(5, sliding_window=3, document_ids=documents(5), device=DEVICE)
    assert choose_backend(torch.empty(1, 4, 5, 16), plain) == "sdpa"
    if DEVICE == "cuda":
        query = torch.empty(1, 4, 5, 128, device=DEVICE, dtype=torch.bfloat16)
        best = "triton" if backend_unsupported_reason("flash", query) else "flash"
        assert choose_backend(query, plain) == choose_backend(query, packed) == best
        with torch.no_grad():
            assert choose_backend(query, packed) == "triton"
        short = AttentionMask.build(5, sliding_window=None, device=DEVICE)
        assert choose_backend(query, short) == "sdpa"
        assert choose_backend(query, plain, dropout_p=0.1) == "sdpa"
        assert choose_backend(query.double(), plain) == "sdpa"
        assert choose_backend(query[:, :, :1], plain) == "sdpa"


def test_wrong_shapes_and_dtypes_are_refused_by_name() -> None:
    query, key, value = heads(5)
    mask = AttentionMask.build(5, sliding_window=3, device=DEVICE)
    with pytest.raises(ValueError, match="expected"):
        attention(query, key[:, :, :4], value, mask)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2"):
        attention(query[:, :3], key, value, mask)
    with pytest.raises(ValueError, match="dtypes"):
        attention(query, key.float(), value.float(), mask)
    with pytest.raises(ValueError, match="mask is for 6 queries"):
        attention(query, key, value, AttentionMask.build(6, sliding_window=3))
    with pytest.raises(ValueError, match="sliding_window is 0"):
        AttentionMask.build(5, sliding_window=0)
    model = tiny()
    with pytest.raises(ValueError, match=r"not \[B, T\]"):
        model(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="no tokens"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="129 tokens are more than max_position_embeddings 128"):
        model(torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match="document_ids has shape"):
        model(torch.zeros(1, 5, dtype=torch.long), document_ids=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="logits_to_keep is 0"):
        model(torch.zeros(1, 5, dtype=torch.long), logits_to_keep=0)
