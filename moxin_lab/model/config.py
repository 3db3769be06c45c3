"""The shape of the decoder, in the field names of `transformers.MistralConfig`, and its parameter
arithmetic.

Guarantees: a `MoxinConfig` that exists is consistent (wrong values raise `ConfigError` naming the
field); `to_hf_dict()` is a `config.json` that transformers reads as a Mistral.
Out of scope: reading the scale files; notebooks pass their `model` section as keyword arguments.
Reading a `config.json` of others (hf_config.py).
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Above this a size is a mistake: a thousand times the largest model that anyone has trained.
MAX_PARAMETERS = 2**50


class ConfigError(ValueError):
    """A configuration from which no decoder can be built; the message names the field and says
    what to do.
    """


@dataclass(frozen=True, kw_only=True)
class MoxinConfig:
    """Shape and constants of one decoder. Defaults are Moxin 7B's (technical report v6, table 1,
    and the released config.json).

    Sources of the defaults:

    - `vocab_size`, `bos_token_id`, `eos_token_id`: config.json.
    - `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`,
      `num_key_value_heads`, `head_dim`: report v6, table 1.
    - `hidden_act`, `rms_norm_eps`, `rope_theta`, `max_position_embeddings`, `initializer_range`,
      `tie_word_embeddings`: config.json. With true, embedding and head are one matrix, as in
      SmolLM2.
    - `sliding_window`: report v6, section 3.2, and config.json. Query i sees keys j with
      i - window < j <= i, itself included, so at most 4096 keys. `None` is plain causal attention
      (later Mistral checkpoints).
    - `eos_token_id`: one id, or several that each end a text.
    - `attention_dropout`, `mlp_dropout`: section 3.1 of the report says 0.1, the released code uses
      0.0 and config.json has no such key; 0.0 here (papers/deviations.yml, `dropout`).
      `mlp_dropout` is not a field of MistralConfig.
    """

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 14_336
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rope_theta: float = 10_000.0
    sliding_window: int | None = 4096
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_shape()
        self._check_token_ids()

    def _check_numbers(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        )
        for name in sizes + (("sliding_window",) if self.sliding_window is not None else ()):
            value = getattr(self, name)
            if not _is_whole(value) or value < 1:
                raise ConfigError(f"{name} is {value!r}: it must be a whole number of at least 1")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise ConfigError(f"{name} is {value!r}: it must be a number above 0")
        for name in ("attention_dropout", "mlp_dropout"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise ConfigError(f"{name} is {value!r}: it must be at least 0 and below 1")

    def _check_shape(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}: each key/value head serves the "
                "same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim is {self.head_dim}: rotary embeddings rotate pairs, so it must be even"
            )
        if self.hidden_act != "silu":
            raise ConfigError(
                f"hidden_act is {self.hidden_act!r}: this decoder has SwiGLU (silu) only"
            )
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(
                f"tie_word_embeddings is {self.tie_word_embeddings!r}: it must be true or false"
            )
        if count_parameters(self)["total"] > MAX_PARAMETERS:
            raise ConfigError(
                f"these sizes make a model of more than {MAX_PARAMETERS:.1e} parameters: one of "
                "them is wrong"
            )

    def _check_token_ids(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            several = name == "eos_token_id" and isinstance(value, tuple) and value
            for token in value if several else (() if value is None else (value,)):
                if not _is_whole(token) or not 0 <= token < self.vocab_size:
                    raise ConfigError(
                        f"{name} is {value!r}: it must be in the vocabulary, "
                        f"0 to {self.vocab_size - 1}, or None"
                    )

    def to_hf_dict(self) -> dict[str, Any]:
        """Content of a `config.json` for `MistralForCausalLM`.

        The rotary base is written twice: `rope_theta` for transformers 4, `rope_parameters` for 5.
        `mlp_dropout`, which transformers does not know, is written only where it is not zero.
        """
        values = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **asdict(self)}
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if not self.mlp_dropout:
            del values["mlp_dropout"]
        return values

    def save(self, folder: str | Path) -> Path:
        """Write `config.json` into `folder`, which is created if needed; returns the file."""
        path = Path(folder) / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(self.to_hf_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        return path


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    if not _is_whole(value) and not isinstance(value, float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def count_parameters(config: MoxinConfig) -> dict[str, int]:
    """Number of parameters of each part, computed from the shapes: the matrices and norms of one
    block, the embedding, the head (0 where it is the embedding), and `total`.

    Moxin 7B: 36 blocks of 218,112,000 + 2 x 131,072,000 + 4096 = 8,114,180,096.
    """
    width, inner = config.hidden_size, config.intermediate_size
    parts = {
        "q_proj": width * config.num_attention_heads * config.head_dim,
        "k_proj": width * config.num_key_value_heads * config.head_dim,
        "v_proj": width * config.num_key_value_heads * config.head_dim,
        "o_proj": width * config.num_attention_heads * config.head_dim,
        "gate_proj": width * inner,
        "up_proj": width * inner,
        "down_proj": width * inner,
        "norms": 2 * width,
    }
    parts["block"] = sum(parts.values())
    parts["embed_tokens"] = config.vocab_size * width
    parts["lm_head"] = 0 if config.tie_word_embeddings else parts["embed_tokens"]
    parts["final_norm"] = width
    parts["total"] = (
        config.num_hidden_layers * parts["block"]
        + parts["embed_tokens"]
        + parts["lm_head"]
        + parts["final_norm"]
    )
    return parts


def matrix_parameters(config: MoxinConfig) -> int:
    """Number of weights that take part in matrix products: blocks and head, without the norms and
    without the embedding, which is a look-up (tied to the head, it counts as the head).
    """
    parts = count_parameters(config)
    head = config.vocab_size * config.hidden_size
    return config.num_hidden_layers * (parts["block"] - parts["norms"]) + head


def training_flops_per_token(config: MoxinConfig, sequence_length: int) -> float:
    """Floating-point operations of forward and backward per token, in rows of `sequence_length`
    tokens with causal, windowed attention.

    6 for each weight of a matrix product (the embedding is a look-up and counts nothing), plus
    attention's two products: 12 x heads x head_dim for each (query, key) pair that the mask allows.
    The backward pass counts twice the forward pass. This is the count of PaLM (Chowdhery et al.
    2022, arXiv 2204.02311, appendix B), restricted to the pairs of the mask.
    """
    matrices = matrix_parameters(config)
    window = min(config.sliding_window or sequence_length, sequence_length)
    pairs = sequence_length * window - window * (window - 1) / 2
    attention = (
        12
        * config.num_hidden_layers
        * config.num_attention_heads
        * config.head_dim
        * pairs
        / sequence_length
    )
    return 6 * matrices + attention
