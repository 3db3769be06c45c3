"""Weight-only quantisation through torchao, as a folder for transformers.

    report = write(model, folder, "torchao-int4")
    again = AutoModelForCausalLM.from_pretrained(folder)      # with torchao installed

The matrices of the blocks are quantised, embedding, head and norms stay as they are, as by
transformers' default. `torchao-int8`: symmetric, one scale per row. `torchao-int4`: symmetric, one
scale per `group_size` numbers of a row.

Guarantees: the folder loads with transformers and torchao and nothing of ours, on a CPU or a GPU,
and computes what the model computed that was written. A width that groups do not fill is refused.
Out of scope: torchao's packed kernels. Those for 4 bits exist for GPUs alone (package `mslk`) and
their files do not load elsewhere, so a number of 4 bits has a byte in this file: `bytes_packed` in
the report is what it would be in half of one. For a file that small, `--to gguf --dtype q4_0`.

Needs the package `torchao`.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import convert
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.decoder import MoxinForCausalLM

GROUP_SIZES = (128, 64, 32)
"""Tried in this order, if none is given: the largest that divides every width of the model."""


def write(
    model: MoxinForCausalLM, folder: Path, target: str, *, group_size: int | None = None
) -> dict[str, Any]:
    """Quantises a copy of the model and writes it; what is to be told of it. Raises LabError for a
    group size that does not divide the widths.
    """
    config, group = _config(model.config, target, group_size)
    plain = folder / "plain"
    convert.save_pretrained(model, plain)
    quantised = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=TorchAoConfig(config), dtype=model.lm_head.weight.dtype
    )
    for path in plain.iterdir():
        path.unlink()
    plain.rmdir()
    kept = folder / "generation_config.json"
    content = kept.read_bytes() if kept.is_file() else None
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        quantised.save_pretrained(folder)
    if content is not None:  # transformers wrote its own
        kept.write_bytes(content)
    matrices = [
        weight
        for name, weight in quantised.named_parameters()
        if type(weight.data).__module__.startswith("torchao")
    ]
    if len(matrices) != 7 * model.config.num_hidden_layers:
        raise LabError(
            f"torchao quantised {len(matrices)} matrices of {7 * model.config.num_hidden_layers}: "
            "this version of it or of transformers is not known to work"
        )
    numbers = sum(weight.numel() for weight in matrices)
    bytes_after = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "dtype": target,
        "group_size": group,
        "matrices_quantised": len(matrices),
        "numbers_quantised": numbers,
        "bytes_packed": bytes_after - (numbers // 2 if target == "torchao-int4" else 0),
        "notes": []
        if target == "torchao-int8"
        else ["each number of 4 bits has a byte in the file; bytes_packed counts half of one"],
    }


def _config(config: MoxinConfig, target: str, group_size: int | None) -> tuple[Any, int | None]:
    """torchao's configuration, and the group size."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if target == "torchao-int8":
        return Int8WeightOnlyConfig(version=2, set_inductor_config=False), None
    widths = {
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
    }
    fitting = [
        size
        for size in ((group_size,) if group_size else GROUP_SIZES)
        if not any(width % size for width in widths)
    ]
    if not fitting:
        raise LabError(
            f"groups of {group_size or ' or '.join(map(str, GROUP_SIZES))} numbers do not fill "
            f"rows of {', '.join(map(str, sorted(widths)))}: give a --group-size that divides them"
        )
    return IntxWeightOnlyConfig(torch.int4, PerGroup(fitting[0])), fitting[0]
