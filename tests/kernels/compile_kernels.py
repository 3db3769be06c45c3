"""Compile every kernel for compute capability 9.0 with the installed Triton, without a GPU.

test_compile.py runs this as a script. It prints one line per kernel and exits with the first error.
Dtypes and sizes are those of a layer at full scale.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from moxin_lab.kernels import (
    adamw,
    cross_entropy,
    few_rows_linear,
    hopper_backward_keys,
    hopper_backward_queries,
    hopper_forward,
    ring_attention,
    tiles_backward,
    tiles_forward,
)
from moxin_lab.training.loss import IGNORE_INDEX

FLOATS = ("scale", "natural_scale", "eps", "smoothing", "learning_rate", "decay", "beta1", "beta2")
HOPPER = GPUTarget("cuda", 90, 32)


def descriptor(block: list[int], kind: str = "bf16") -> str:
    """The type of a TMA descriptor in Triton's notation."""
    bits = 32 if kind == "fp32" else 16
    swizzle = 0 if bits == 32 else 128
    layout = (
        f"NVMMASharedLayout(swizzle_byte_width={swizzle}, element_bitwidth={bits}, "
        f"rank={len(block)}, transposed=False, fp4_padded=False, cga_layout=[])"
    )
    return f"tensordesc<{kind}{block},{layout}>"


def build(
    function: Any, constants: dict[str, Any], types: dict[str, str] | None = None, **options: int
) -> None:
    """Compile `function`. Arguments that are neither in `constants` nor in `types` are bf16
    pointers if their names end in _ptr, float32 if they are in FLOATS, else int32.
    """
    pointers = {
        "log_sum_ptr": "*fp32",
        "delta_ptr": "*fp32",
        "starts_ptr": "*i32",
        "ends_ptr": "*i32",
    } | (types or {})
    signature, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        plain = "*bf16" if name.endswith("_ptr") else "fp32" if name in FLOATS else "i32"
        signature[name] = pointers.get(name, plain)
        if signature[name][0] == "*":
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = GluonASTSource if "gluon" in type(function).__name__.lower() else ASTSource
    constexprs = {(function.arg_names.index(name),): value for name, value in constants.items()}
    program = source(function, signature, constexprs, attributes)
    triton.compile(program, target=HOPPER, options=options)
    print(function.__name__, "compiled")


def main() -> None:
    layer = {"HEADS": 32, "GROUP": 4, "D": 128}
    flags = {"HAS_WINDOW": True, "HAS_STARTS": True}
    rows, matrix = [1, 1, 64, 128], [1, 1, 128, 128]
    sums = {"log_sum_desc": descriptor([1, 64], "fp32"), "delta_desc": descriptor([1, 64], "fp32")}
    build(
        hopper_forward.forward,
        layer | flags | {"BM": 128, "BN": 128, "STAGES": 2, "UNITS": 32, "num_warps": 4},
        {
            "query_desc": descriptor(rows),
            "key_desc": descriptor(matrix),
            "value_desc": descriptor(matrix),
        },
        num_warps=4,
    )
    build(
        hopper_backward_keys.backward_keys,
        layer | flags | {"BM": 64, "BN": 128, "STAGES": 2, "STORE": True, "num_warps": 4},
        {f"{name}_desc": descriptor(rows) for name in ("query", "key", "value", "gradient")}
        | sums
        | {"scores_desc": descriptor([64, 64])},
        num_warps=4,
    )
    build(
        hopper_backward_queries.backward_queries,
        layer | flags | {"BM": 128, "STAGES": 3, "num_warps": 4},
        {"scores_desc": descriptor([128, 64]), "key_desc": descriptor(matrix)},
        num_warps=4,
    )
    build(tiles_forward.forward, layer | flags | {"BM": 128, "BN": 64}, num_warps=4, num_stages=3)
    build(
        tiles_backward.backward_keys,
        layer | flags | {"BM": 64, "BN": 128, "STORE": True},
        num_warps=8,
        num_stages=2,
    )
    build(
        tiles_backward.backward_queries,
        layer | flags | {"BM": 128, "BN": 64},
        num_warps=8,
        num_stages=2,
    )
    build(
        tiles_backward.backward_queries_stored,
        layer | flags | {"BM": 128},
        num_warps=8,
        num_stages=3,
    )
    build(tiles_backward.output_dot_gradient, {"HEADS": 32, "D": 128, "BM": 64}, num_warps=4)
    for batch in (1, 8):
        dot, columns, depth, warps, stages = few_rows_linear.tile_sizes(batch, 4096, True, True, 2)
        few = {
            "ROWS": 16,
            "BN": columns,
            "BK": depth,
            "HAS_NORM": True,
            "HAS_RESIDUAL": False,
            "GATED": True,
            "DOT": dot,
        }
        build(few_rows_linear._few_rows, few, num_warps=warps, num_stages=stages)
    ring = {
        "HEADS": 32,
        "KV_HEADS": 8,
        "GROUP": 4,
        "BN": 64,
        "SPLITS": 16,
        "SPLITS_ROUNDED": 16,
        "HAS_PADDING": True,
    }
    for head_dim in (32, 128):
        build(
            ring_attention._ring,
            ring | {"D": head_dim},
            {
                "cos_ptr": "*fp32",
                "sin_ptr": "*fp32",
                "length_ptr": "*i32",
                "padding_ptr": "*i32",
                "partial_ptr": "*fp32",
                "counter_ptr": "*i32",
            },
            num_warps=4,
            num_stages=3,
        )
    build(adamw._update, {"BLOCK": 2048}, {"corrections_ptr": "*fp32"}, num_warps=4)
    build(
        cross_entropy._rows,
        {"IGNORE_INDEX": IGNORE_INDEX, "BLOCK": 4096},
        {"labels_ptr": "*i64", "losses_ptr": "*fp32"},
        num_warps=8,
    )


if __name__ == "__main__":
    main()
