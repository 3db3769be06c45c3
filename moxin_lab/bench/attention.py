"""`moxin-lab bench attention`: windowed attention of one layer, forward and backward, ours beside
every peer that runs on this machine.

    moxin-lab bench attention --device cuda --json FILE

The layer has the shape of the full scale (32 query heads over 8, head size 128, window 4,096).
Peers: FlexAttention on its default Triton backend, FlexAttention on flash-attn-4
(`BACKEND="FLASH"`), flash-attn-4 itself, PyTorch's own FlashAttention-2 with its window arguments,
and, to show what the window saves, cuDNN's attention over the full triangle. Compilation takes most
of the time: about twenty seconds per shape for FlexAttention, thirty for flash-attn-4.

Guarantees: FLOPs are those of the exact mask (forward 4 x pairs x heads x head size, backward 2.5
times that; for the full triangle its own pairs). Every row has `relative_error`, the distance of
its output to the float32 definition on the last 256 queries, and `added_peak_bytes`, the memory of
one forward and backward call beyond the inputs. Inputs are random; times are medians between device
events. Rows are timed in turns, so those of a shape end together, and are kept together. A backend
that cannot run is a row with its reason. Ctrl-C while a row is compiled skips that row.
Out of scope: tuning the tile sizes of peers.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moxin_lab.bench.keeping import Keep, keeping
from moxin_lab.lab.measured import OTHER_WORK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moxin_lab.scales.sections import ModelSettings

Call = Callable[[], Any]
MakeCall = Callable[["list[Tensor]"], Call]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes", default="16384x1,32768x1,4096x4", help="tokens x rows, separated by commas"
    )
    parser.add_argument(
        "--width",
        default="full",
        help="scale of the heads and the window: tiny, small or full (default)",
    )
    parser.add_argument(
        "--document-tokens",
        type=int,
        default=0,
        metavar="N",
        help="pack rows with documents of N tokens (default: one document per row)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="WORDS",
        help="only rows whose name contains one of these words, separated by commas",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of turns of all rows (default 3)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=10,
        help="calls per turn (default 10); a row is the median of its turns",
    )


@keeping("attention")
def run(options: argparse.Namespace, keep: Keep) -> dict[str, Any]:
    """Rows: implementation, tokens, rows, document_tokens (0: none), forward_ms, forward_tflops,
    backward_ms, backward_tflops, relative_error, added_peak_bytes, reason; and the ceilings of this
    machine, measured in the same run.
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
            f"--document-tokens {options.document_tokens} does not divide every length of "
            f"--shapes {lengths}"
        )
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    # The backward of a peer is called many times on one output, which the donated buffers of
    # torch.compile do not allow.
    functorch_config.donated_buffer = False
    rows: list[dict[str, Any]] = []
    result = {
        "shape": shape.model_dump(),
        "dtype": str(dtype),
        "ceilings": ceilings(options.device),
        "rows": rows,
    }
    for text in options.shapes.split(","):
        tokens, batch = (int(number) for number in text.split("x"))
        # Otherwise a second length would be compiled for any length, which is slower.
        torch.compiler.reset()
        inputs = random_inputs(shape, tokens, batch, dtype, options.device)
        rows += measure_shape(inputs, shape.sliding_window, options)
        keep(result)
        del inputs
        free_memory(options.device)
    return result


def random_inputs(
    shape: ModelSettings, tokens: int, batch: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """query, key and value in the layout of the projections: [B, T, H, D] seen as [B, H, T, D]."""
    import torch

    generator = torch.Generator(device).manual_seed(tokens)
    heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads)
    return [
        torch.randn(
            (batch, tokens, num_heads, shape.head_dim),
            dtype=dtype,
            device=device,
            generator=generator,
        )
        .transpose(1, 2)
        .requires_grad_()
        for num_heads in heads
    ]


def document_ids(tokens: int, batch: int, document_tokens: int, device: str) -> Tensor | None:
    """Document ids [B, T] of rows packed with documents of `document_tokens` tokens; None for 0."""
    import torch

    if not document_tokens:
        return None
    return (torch.arange(tokens, device=device) // document_tokens).expand(batch, tokens)


def implementations(window: int, document_tokens: int, device: str) -> dict[str, MakeCall]:
    """The implementations by name. Each is a function of (query, key, value) that returns the call
    to time, and the call returns the output [B, H, T, D].
    """
    import torch
    import torch.nn.functional as F

    from moxin_lab.model.attention import attention
    from moxin_lab.model.mask import AttentionMask

    def build_mask(query: Tensor) -> AttentionMask:
        ids = document_ids(query.shape[2], len(query), document_tokens, device)
        return AttentionMask.build(
            query.shape[2], sliding_window=window, document_ids=ids, device=device
        )

    def ours(backend: str) -> MakeCall:
        def make(inputs: list[Tensor]) -> Call:
            query, key, value = inputs
            mask = build_mask(query)
            return lambda: attention(query, key, value, mask, backend=backend)

        return make

    def triangle(inputs: list[Tensor]) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def call() -> Tensor:
            with sdpa_kernel(
                SDPBackend.CUDNN_ATTENTION if device == "cuda" else SDPBackend.FLASH_ATTENTION
            ):
                return F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)

        return call

    def flex(options: dict[str, Any] | None) -> MakeCall:
        from torch.nn.attention.flex_attention import flex_attention

        def make(inputs: list[Tensor]) -> Call:
            query, key, value = inputs
            blocks = build_mask(query).blocks
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


def pytorch_flash(window: int) -> MakeCall:
    """PyTorch's built-in FlashAttention-2 with a window, which only its internal operators accept;
    only CUDA builds have them.
    """
    import torch

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
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
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
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
    inputs: list[Tensor], window: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per implementation. All are prepared first and then timed in turns, so that no row
    runs on a cooler or less busy GPU than the others.
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
    inputs: list[Tensor],
    gradient: Tensor,
    window: int,
    row: dict[str, Any],
    options: argparse.Namespace,
) -> tuple[Call, Call]:
    """Run forward and backward once, which compiles them, and add error and memory to `row`;
    returns both as calls to time.
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
    # The full triangle computes another function than the definition.
    row["relative_error"] = (
        None
        if OTHER_WORK in row["implementation"]
        else relative_error(output, inputs, window, options.document_tokens)
    )
    return call, lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)


def speeds(
    row: dict[str, Any],
    query: Tensor,
    window: int,
    document_tokens: int,
    forward: float,
    backward: float,
) -> dict[str, float]:
    """Milliseconds and TFLOP/s of forward and backward, from their seconds and the pairs of the
    row's mask.
    """
    batch, heads, tokens, head_dim = query.shape
    if OTHER_WORK in row["implementation"]:
        window, document_tokens = tokens, 0
    document_tokens = document_tokens or tokens
    reach = min(window, document_tokens)
    pairs_per_document = document_tokens * reach - reach * (reach - 1) / 2
    flops = 4 * batch * heads * head_dim * (tokens // document_tokens) * pairs_per_document
    return {
        "forward_ms": forward * 1000,
        "forward_tflops": flops / forward / 1e12,
        "backward_ms": backward * 1000,
        "backward_tflops": 2.5 * flops / backward / 1e12,
    }


def relative_error(
    output: Tensor, inputs: list[Tensor], window: int, document_tokens: int = 0, last: int = 256
) -> float:
    """|output - definition| / |definition| over the `last` queries of a row, with the definition in
    float32 without tf32.
    """
    import torch

    from moxin_lab.model.attention import reference_attention
    from moxin_lab.model.mask import AttentionMask

    query, key, value = (tensor.detach() for tensor in inputs)
    tokens = query.shape[2]
    last = min(last, tokens)
    first = max(0, tokens - last - window)
    positions = torch.arange(tokens, device=query.device)
    starts = (
        (positions[-last:] // document_tokens * document_tokens).expand(len(query), last)
        if document_tokens
        else None
    )
    mask = AttentionMask(positions[-last:], positions[first:], window, False, False, starts=starts)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = reference_attention(
        query[:, :, -last:].float(), key[:, :, first:].float(), value[:, :, first:].float(), mask
    )
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return ((output.detach()[:, :, -last:].float() - exact).norm() / exact.norm()).item()


def ceilings(device: str) -> dict[str, float]:
    """The best rates of this machine: TFLOP/s of a large 16-bit matrix product (on the CPU float32)
    and bytes per second, read plus written, of a large copy.
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
