"""A model and its tokenizer as one GGUF file, which llama.cpp and its kin run.

    write(model, tokenizer, folder, Path("model.gguf"))                 # in the model's dtype
    write(model, tokenizer, folder, Path("model.gguf"), kind="q4_0")    # 32 numbers to a scale

Names and keys are those that `model.gguf_reader` reads, of llama.cpp's architecture `llama`. Rows
of query and key projections are put in llama.cpp's order, in which the two numbers that are rotated
together are neighbours. Norms stay in float32.

Guarantees: each tensor is read back from the file and equals, bit for bit, what its type can hold
of the source's. A tokenizer that llama.cpp would cut otherwise is refused (gguf_tokens.py).
Out of scope: llama.cpp's K-quants, which need its own `llama-quantize`; the sliding window, which
`llama` does not have: a model with one is given out with a context as long as its window, within
which the window excludes nothing.

Needs the package `gguf`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from moxin_lab.export import gguf_tokens
from moxin_lab.lab.artifacts import LabError
from moxin_lab.model import gguf_reader
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import HEAD
from moxin_lab.model.decoder import MoxinForCausalLM

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""Our word to that of `gguf.GGMLQuantizationType`."""
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
"""`general.file_type`, of llama.cpp's `enum llama_ftype`."""
GROUP = 32
"""Numbers of a row that share a scale in Q8_0 and Q4_0."""


def write(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    path: Path,
    *,
    kind: str | None = None,
) -> dict[str, Any]:
    """Writes the file and reads it back; what is to be told of it.

    source: the folder or file that both were read from. kind: of `TYPES`; default: the source's
    dtype. Raises LabError for rows that groups of 32 do not fill, and of `gguf_tokens`.
    """
    import gguf

    config = model.config
    stored = str(model.lm_head.weight.dtype).removeprefix("torch.")
    if (kind or stored) not in TYPES:
        raise LabError(f"a GGUF file here holds no {stored}: give --dtype float32")
    name = TYPES[kind or stored]
    if name.startswith("Q"):
        _check_rows(config, name)
    vocabulary = gguf_tokens.describe(source, tokenizer, config.vocab_size)
    notes = []
    context = config.max_position_embeddings
    if config.sliding_window is not None and config.sliding_window < context:
        context = config.sliding_window
        notes.append(
            f"llama.cpp has no sliding window for this architecture: the file states a context of "
            f"{context} tokens, the window, and not {config.max_position_embeddings}"
        )
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(source.stem if source.is_file() else source.resolve().name)
    _add_shape(writer, config, context)
    writer.add_file_type(FILE_TYPES[name])
    if name.startswith("Q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_tokens.add(writer, vocabulary)
    weights = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not (config.tie_word_embeddings and key == HEAD)
    }
    for key, tensor in weights.items():
        data, raw = _stored(_ordered(key, tensor, config), name)
        writer.add_tensor(gguf_name(key), data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    compare(path, weights, config, name)
    gguf_tokens.compare(path, vocabulary)
    return {"dtype": kind or stored, "tensors_compared": len(weights), "notes": notes}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor, from transformers'."""
    base = name.removesuffix(".weight")
    if base.startswith("model.layers."):
        block, part = base.removeprefix("model.layers.").split(".", 1)
        theirs = {ours: theirs for theirs, ours in gguf_reader.BLOCK_TENSORS.items()}[part]
        return f"blk.{block}.{theirs}.weight"
    return f"{ {ours: theirs for theirs, ours in gguf_reader.TENSORS.items()}[base] }.weight"


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a query or key projection [H * D, C] in llama.cpp's order; `gguf_reader.half_split`
    undoes it.
    """
    rows, width = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, width)  # [H, 2, D/2, C]
    return halves.transpose(1, 2).reshape(rows, width).contiguous()


def compare(path: Path, weights: dict[str, torch.Tensor], config: MoxinConfig, kind: str) -> None:
    """Raises LabError unless the file holds `weights` as its type can hold them, no more and no
    fewer. The file is read as `gguf_reader` reads it.
    """
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    expected = {gguf_name(key) for key in weights}
    if found.keys() != expected:
        wrong = sorted(found.keys() ^ expected)
        raise LabError(f"{path} was not read back as it was written: {', '.join(wrong[:4])}")
    for key, tensor in weights.items():
        stored = found[gguf_name(key)]
        read = gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float32)
        again = torch.from_numpy(read.reshape(tuple(tensor.shape)))
        heads = _heads(key, config)
        again = again if heads is None else gguf_reader.half_split(again, heads)
        data, raw = _stored(tensor, kind)
        held = gguf.quants.dequantize(data, raw).reshape(tuple(tensor.shape))
        if not torch.equal(again, torch.from_numpy(held.astype(np.float32))):
            raise LabError(f"{path}: {key} was not read back as it was written: try another disk")


def _stored(tensor: torch.Tensor, kind: str) -> tuple[np.ndarray, Any]:
    """What a file of this kind holds of a tensor, and its type: norms are always float32."""
    import gguf

    raw = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
    values = tensor.detach().to("cpu", torch.float32).numpy()
    return gguf.quants.quantize(values, raw), raw


def _ordered(name: str, tensor: torch.Tensor, config: MoxinConfig) -> torch.Tensor:
    heads = _heads(name, config)
    return tensor if heads is None else interleaved(tensor, heads)


def _heads(name: str, config: MoxinConfig) -> int | None:
    """Heads of a projection whose rows are rotated, or None."""
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else None


def _add_shape(writer: Any, config: MoxinConfig, context: int) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _check_rows(config: MoxinConfig, kind: str) -> None:
    widths = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads x head_dim": config.num_attention_heads * config.head_dim,
    }
    wrong = [f"{name} is {width}" for name, width in widths.items() if width % GROUP]
    if wrong:
        raise LabError(
            f"{kind} stores rows in groups of {GROUP} numbers, but {' and '.join(wrong)}: use "
            "--dtype float16"
        )
