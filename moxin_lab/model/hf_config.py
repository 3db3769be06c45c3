"""A `config.json` that someone else wrote, read as a `MoxinConfig`.

    config = hf_config.read("path/to/checkpoint")         # Mistral, or LLaMA without its extras

Guarantees: the configuration computes what transformers computes from the same file. A key that is
neither a field of `MoxinConfig` nor known to leave the logits as they are is refused, and so is a
value that this decoder does not implement: each error names the file and the key.
Out of scope: weights (convert.py); writing (`MoxinConfig.save`).
"""

from pathlib import Path
from typing import Any

from moxin_lab import untrusted
from moxin_lab.model.config import ConfigError, MoxinConfig

# What an absent key means in transformers 5.23, where that is not what it means in MoxinConfig.
# A LLaMA is a Mistral without a window.
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"rms_norm_eps": 1e-6, "max_position_embeddings": 131_072},
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "sliding_window": None},
}

# Keys that say where a file comes from, or how `generate` or a trainer uses the model.
HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "do_sample",
        "dtype",
        "finetuning_task",
        "id2label",
        "is_decoder",
        "is_llama_config",
        "label2id",
        "max_length",
        "min_length",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "task_specific_params",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)

# Keys that would change the model, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "auto_map": (None, {}),
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "decoder_start_token_id": (None,),
    "diversity_penalty": (0,),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "is_encoder_decoder": (False,),
    "length_penalty": (1,),
    "mlp_bias": (False,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "partial_rotary_factor": (None, 1),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "remove_invalid_values": (False,),
    "repetition_penalty": (1,),
    "rope_interleaved": (False,),
    "suppress_tokens": (None,),
    "tf_legacy_loss": (False,),
    "tie_encoder_decoder": (False,),
}

ARCHITECTURES = ("MistralForCausalLM", "LlamaForCausalLM")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
MAX_BYTES = 2**20  # of a config.json; the longest ones, with names of 20,000 labels, are shorter


def read(folder: str | Path) -> MoxinConfig:
    """Read `config.json` of a checkpoint folder, or that file itself. Raises ConfigError,
    FileNotFoundError.
    """
    path = Path(folder)
    path = path if path.is_file() else path / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint folder has a config.json")
    try:
        values = untrusted.load_json(untrusted.read_bytes(path, MAX_BYTES))
    except untrusted.UntrustedError as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def from_dict(values: Any) -> MoxinConfig:
    """The content of a Mistral's or LLaMA's `config.json`, of transformers 4 or 5, as a
    MoxinConfig.

    Raises ConfigError for another model type, a missing size, an unknown key, and a value that
    this decoder does not implement, such as a scaled rotary embedding.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"it is a {type(values).__name__}, not an object with the model's sizes")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise ConfigError(f"model_type is {kind!r}: {' and '.join(DEFAULTS)} checkpoints are read")
    architectures = values.get("architectures") or []
    if not isinstance(architectures, list) or any(a not in ARCHITECTURES for a in architectures):
        raise ConfigError(
            f"architectures is {architectures!r}: only {' and '.join(ARCHITECTURES)} are read"
        )
    missing = [name for name in SIZES if values.get(name) is None]
    if missing:
        raise ConfigError(f"it lacks {', '.join(missing)}: these sizes have no default")
    _refuse_unknown(values)
    known = DEFAULTS[kind] | {
        name: values[name] for name in MoxinConfig.__dataclass_fields__ if name in values
    }
    if kind == "llama" and known["sliding_window"] is not None:
        raise ConfigError("sliding_window is set: a LLaMA has no window")
    known["rope_theta"] = _rope_theta(values)
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if known.get("num_key_value_heads") is None:
        # Mistral's default is 8 for an absent key, and the number of heads for null.
        absent = kind == "mistral" and "num_key_value_heads" not in values
        known["num_key_value_heads"] = 8 if absent else heads
    if known.get("head_dim") is None:
        known["head_dim"] = _head_dim(width, heads)
    if known.get("attention_dropout", 0.0) is None:  # LlamaConfig allows it for 0
        known["attention_dropout"] = 0.0
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = tuple(known["eos_token_id"])
    config = MoxinConfig(**known)
    _check_layer_types(values.get("layer_types"), config)
    return config


def _head_dim(width: Any, heads: Any) -> Any:
    """Width by heads; a wrong one of both is left for MoxinConfig to name."""
    whole = all(isinstance(value, int) and value > 0 for value in (width, heads))
    return width // heads if whole else 2


def _refuse_unknown(values: dict[str, Any]) -> None:
    """Raises ConfigError for keys that may change what the model computes."""
    known = MoxinConfig.__dataclass_fields__.keys() | HARMLESS | NEUTRAL.keys()
    known |= {"architectures", "layer_types", "model_type", "rope_parameters", "rope_scaling"}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ConfigError(
            f"unknown keys {_some(unknown)}: they may change what the model computes. Remove those "
            "that do not; for the others this decoder is the wrong one"
        )
    for name, neutral in NEUTRAL.items():
        if name in values and values[name] not in neutral:
            raise ConfigError(
                f"{name} is {str(values[name])[:80]}: this decoder implements "
                f"{' and '.join(map(repr, neutral))} only"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _rope_theta(values: dict[str, Any]) -> Any:
    """Base of the rotary embedding. As in transformers, a filled `rope_scaling` (version 4) comes
    before `rope_parameters` (5), which is then not read, and `rope_theta` inside it before that
    outside.
    """
    for name in ("rope_scaling", "rope_parameters"):
        rope = values.get(name)
        if not rope:
            continue
        if not isinstance(rope, dict):
            raise ConfigError(f"{name} is {str(rope)[:80]}: it must be an object or null")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(
                f"rotary embedding of type {kind!r}: only 'default' (unscaled) is implemented"
            )
        unknown = sorted(rope.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
        if unknown or rope.get("partial_rotary_factor") not in NEUTRAL["partial_rotary_factor"]:
            raise ConfigError(
                f"{name} is {str(rope)[:80]}: beside its type only rope_theta is implemented"
            )
        return rope.get("rope_theta", values.get("rope_theta", 10_000.0))
    return values.get("rope_theta", 10_000.0)


def _check_layer_types(layer_types: Any, config: MoxinConfig) -> None:
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    if layer_types is not None and layer_types != [kind] * config.num_hidden_layers:
        raise ConfigError(
            f"layer_types is {str(layer_types)[:80]}: with sliding_window "
            f"{config.sliding_window} every one of the {config.num_hidden_layers} blocks is "
            f"{kind!r} in this decoder"
        )
