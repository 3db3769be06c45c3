"""`moxin-lab bench attention`: one layer's windowed attention, forward and backward, ours beside
every peer that runs here.

    moxin-lab bench attention --device cuda --json FILE

The layer's shape is the full scale's (32 query heads over 8, head size 128, window 4,096). Peers:
FlexAttention's Triton back end as it comes, FlexAttention on flash-attn-4 (`BACKEND="FLASH"`),
flash-attn-4 itself, PyTorch's own FlashAttention-2 with its window arguments, and, to see what the
window buys, cuDNN's attention over the full triangle. Compiling takes the longest: about twenty
seconds a shape for FlexAttention, thirty for flash-attn-4.

Guarantees: operations are those of the exact mask (forward 4 x pairs x heads x head size, backward
2.5 times that; for the full triangle its own pairs); every row carries `relative_error`, its
output's distance to the float32 definition on the last 256 queries of the same inputs, and
`added_peak_bytes`, what one call forward and backward took beyond inputs; inputs are random, times
medians by device events, taken in turns; a back end that cannot run is a row with its reason. An
interrupt (SIGINT) while a row is compiled gives that row up; one while rows are timed ends the run
with the shapes that are finished.
Does not: tune peers' tile sizes.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]
OTHER_WORK = "full triangle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes", default="16384x1,32768x1,4096x4", help="tokens x rows, several with commas"
    )
    parser.add_argument(
        "--width", default="full", help="whose heads and window: tiny, small, full (default)"
    )
    parser.add_argument(
        "--document-tokens",
        type=int,
        default=0,
        metavar="N",
        help="pack rows of documents of N tokens (default: no documents)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="only rows whose name contains one of these, by commas",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of all rows (default 3)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=10,
        help="calls a turn (default 10); a row is the median of its turns",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rows: implementation, tokens, rows, document_tokens (0: none), forward_ms, forward_tflops,
    backward_ms, backward_tflops, relative_error, reason; and the ceilings of this machine in the
    same run.
    """
    import torch
    import torch._functorch.config as functorch_config

    from moxin_lab import scales
    from moxin_lab.bench import free_memory

    shape = scales.load(options.width).model
    lengths = [int(text.split("x")[0]) for text in options.shapes.split(",")]
    if options.document_tokens < 0 or any(
        options.document_tokens and n % options.document_tokens for n in lengths
    ):
        raise ValueError(
            f"--document-tokens {options.document_tokens} does not divide every length of --shapes {lengths}"
        )
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    # The peers' backward is called many times on one output, which torch.compile's donated buffers
    # would refuse.
    functorch_config.donated_buffer = False
    rows: list[dict[str, Any]] = []
    record = {
        "shape": shape.model_dump(),
        "dtype": str(dtype),
        "ceilings": ceilings(options.device),
        "rows": rows,
    }
    try:
        for text in options.shapes.split(","):
            tokens, batch = (int(number) for number in text.split("x"))
            torch.compiler.reset()  # else a second length would be compiled for any length, which is slower
            inputs = draw(shape, tokens, batch, dtype, options.device)
            rows += measure_shape(inputs, shape.sliding_window, options)
            del inputs
            free_memory(options.device)
    except KeyboardInterrupt:
        record["note"] = f"Interrupted after {len(rows)} rows."
    return record


def draw(shape: Any, tokens: int, batch: int, dtype: Any, device: str) -> list[Any]:
    """query, key, value as the projections leave them: [B, T, H, D] seen as [B, H, T, D]."""
    import torch

    generator = torch.Generator(device).manual_seed(tokens)
    heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads)
    return [
        torch.randn(
            batch, tokens, number, shape.head_dim, dtype=dtype, device=device, generator=generator
        )
        .transpose(1, 2)
        .requires_grad_()
        for number in heads
    ]


def documents(tokens: int, batch: int, each: int, device: Any) -> Any:
    """Document numbers [B, T] of rows packed with documents of `each` tokens; None for 0."""
    import torch

    return (torch.arange(tokens, device=device) // each).expand(batch, tokens) if each else None


def implementations(
    window: int, document_tokens: int, device: str
) -> dict[str, Callable[[list[Any]], Call]]:
    """Name -> a function of the inputs that returns the call to time, whose result is the output
    [B, H, T, D].
    """
    import torch
    import torch.nn.functional as F

    from moxin_lab.model.attention import AttentionMask, attention

    def build(query: Any) -> AttentionMask:
        numbers = documents(query.shape[2], len(query), document_tokens, device)
        return AttentionMask.build(
            query.shape[2], sliding_window=window, document_ids=numbers, device=device
        )

    def ours(backend: str) -> Callable[[list[Any]], Call]:
        def make(inputs: list[Any]) -> Call:
            query, key, value = inputs
            mask = build(query)
            return lambda: attention(query, key, value, mask, backend=backend)

        return make

    def triangle(inputs: list[Any]) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def call() -> Any:
            with sdpa_kernel(
                SDPBackend.CUDNN_ATTENTION if device == "cuda" else SDPBackend.FLASH_ATTENTION
            ):
                return F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)

        return call

    def flex(options: dict[str, Any] | None) -> Callable[[list[Any]], Call]:
        from torch.nn.attention.flex_attention import flex_attention

        def make(inputs: list[Any]) -> Call:
            query, key, value = inputs
            blocks = build(query).blocks
            compiled = torch.compile(flex_attention, dynamic=False)
            return lambda: compiled(
                query, key, value, block_mask=blocks, enable_gqa=True, kernel_options=options
            )

        return make

    return {
        "auto": ours("auto"),
        "triton": ours("triton"),
        "flash (flash-attn-4)": ours("flash"),
        "flex (Triton)": flex(None),
        **({} if document_tokens else {"PyTorch FlashAttention-2, window": pytorch_flash(window)}),
        "sdpa, dense mask": ours("sdpa"),
        "cuDNN, full triangle": triangle,
        "flex (flash-attn-4)": flex({"BACKEND": "FLASH"}),
    }


def pytorch_flash(window: int) -> Callable[[list[Any]], Call]:
    """PyTorch's built-in FlashAttention-2 takes a window, but only through its operators, which
    CUDA builds alone have.
    """
    import torch

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
            length = query.shape[2]
            results = torch.ops.aten._flash_attention_forward(
                *rows,
                None,
                None,
                length,
                length,
                0.0,
                True,
                False,
                window_size_left=window - 1,
                window_size_right=0,
            )
            ctx.save_for_backward(*rows, *results[:4])
            return results[0].transpose(1, 2)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            query, key, value, output, log_sum, seed, offset = ctx.saved_tensors
            length = query.shape[1]
            gradients = torch.ops.aten._flash_attention_backward(
                gradient.transpose(1, 2),
                query,
                key,
                value,
                output,
                log_sum,
                None,
                None,
                length,
                length,
                0.0,
                True,
                seed,
                offset,
                window_size_left=window - 1,
                window_size_right=0,
            )
            return tuple(tensor.transpose(1, 2) for tensor in gradients)

    return lambda inputs: lambda: Flash.apply(*inputs)


def measure_shape(
    inputs: list[Any], window: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row an implementation. All are prepared first, then timed in turns, so that no row has a
    cooler or busier GPU.
    """
    import torch

    from moxin_lab.bench import median_seconds

    batch, _, tokens, _ = inputs[0].shape
    gradient = torch.randn_like(inputs[0])
    rows: list[dict[str, Any]] = []
    prepared: list[tuple[dict[str, Any], Call, Call]] = []
    for name, make in implementations(window, options.document_tokens, options.device).items():
        if not any(word in name for word in options.only.split(",")):
            continue
        sizes = {"tokens": tokens, "rows": batch, "document_tokens": options.document_tokens}
        row: dict[str, Any] = {"implementation": name, **sizes}
        rows.append(row)
        began = time.perf_counter()
        try:
            prepared.append((row, *prepare(make(inputs), inputs, gradient, window, row, options)))
        except (RuntimeError, ValueError, ImportError, NotImplementedError, TypeError) as error:
            row["reason"] = f"{type(error).__name__}: {error}"[:300]
        except KeyboardInterrupt:
            row["reason"] = f"interrupted after {time.perf_counter() - began:.0f} s of preparation"
        row["first_call_seconds"] = round(time.perf_counter() - began, 1)
        print(
            "  ",
            name,
            row["first_call_seconds"],
            "s",
            row.get("reason", ""),
            file=sys.stderr,
            flush=True,
        )
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in prepared]
    for _ in range(options.rounds):
        for (_, forward, backward), (forwards, backwards) in zip(prepared, seconds, strict=True):
            forwards.append(
                median_seconds(forward, device=options.device, warmup=3, repeats=options.repeats)
            )
            backwards.append(
                median_seconds(backward, device=options.device, warmup=3, repeats=options.repeats)
            )
    for (row, _, _), (forwards, backwards) in zip(prepared, seconds, strict=True):
        row |= speeds(
            row,
            inputs[0],
            window,
            options.document_tokens,
            statistics.median(forwards),
            statistics.median(backwards),
        )
        shown = {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in row.items()
        }
        print(shown, file=sys.stderr, flush=True)
    return rows


def prepare(
    call: Call,
    inputs: list[Any],
    gradient: Any,
    window: int,
    row: dict[str, Any],
    options: argparse.Namespace,
) -> tuple[Call, Call]:
    """Run both directions once, which compiles; fills in the error and the memory of `row`; returns
    both as calls to time.
    """
    import torch

    from moxin_lab.bench import free_memory

    device = options.device
    free_memory(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    output = call()
    torch.autograd.grad(output, inputs, gradient, retain_graph=True)
    row["added_peak_bytes"] = (
        torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    )
    other = OTHER_WORK in row["implementation"]
    row["relative_error"] = (
        None if other else relative_error(output, inputs, window, options.document_tokens)
    )
    return call, lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)


def speeds(
    row: dict[str, Any],
    query: Any,
    window: int,
    document_tokens: int,
    forward: float,
    backward: float,
) -> dict[str, float]:
    """Milliseconds and TFLOP/s of both directions, over the pairs that the row's mask has."""
    batch, heads, tokens, head_dim = query.shape
    if OTHER_WORK in row["implementation"]:
        window, document_tokens = tokens, 0
    each = document_tokens or tokens
    reach = min(window, each)
    operations = (
        4 * batch * heads * head_dim * (tokens // each) * (each * reach - reach * (reach - 1) / 2)
    )
    return {
        "forward_ms": forward * 1000,
        "forward_tflops": operations / forward / 1e12,
        "backward_ms": backward * 1000,
        "backward_tflops": 2.5 * operations / backward / 1e12,
    }


def relative_error(
    output: Any, inputs: list[Any], window: int, document_tokens: int = 0, last: int = 256
) -> float:
    """|output - definition| / |definition| over the last queries, the definition in float32 without
    tf32.
    """
    import torch

    from moxin_lab.model.attention import AttentionMask, reference_attention

    query, key, value = (tensor.detach() for tensor in inputs)
    tokens = query.shape[2]
    last = min(last, tokens)
    first = max(0, tokens - last - window)
    places = torch.arange(tokens, device=query.device)
    starts = (
        (places[-last:] // document_tokens * document_tokens).expand(len(query), last)
        if document_tokens
        else None
    )
    mask = AttentionMask(places[-last:], places[first:], window, False, False, starts=starts)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = reference_attention(
        query[:, :, -last:].float(), key[:, :, first:].float(), value[:, :, first:].float(), mask
    )
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return ((output.detach()[:, :, -last:].float() - exact).norm() / exact.norm()).item()


def ceilings(device: str) -> dict[str, float]:
    """What this machine reaches at best: a large 16-bit matrix product, a large copy (bytes read
    plus written).
    """
    import torch

    from moxin_lab.bench import median_seconds

    size = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = median_seconds(lambda: a @ b, device=device, repeats=20)
    source = torch.randn(2**28 if device == "cuda" else 2**22, device=device)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device=device, repeats=20)
    return {
        "matrix_product_tflops": 2 * math.pow(size, 3) / product / 1e12,
        "copy_bytes_per_second": 2 * source.nbytes / copy,
    }
