"""The `generation_config.json` of a model folder: what ends a text, and what else it asks for.

Guarantees: an option that would change which tokens follow, and that our generation does not
implement, is named, never dropped; which options those are, and with which values they ask for
nothing, is by transformers' `GenerationConfig`. Without the file, a folder asks for nothing.
Out of scope: how to sample (temperature, top_p and their kind), which whoever calls `stream` says.
"""

from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, read_json

HARMLESS = frozenset(
    # What the caller says: how to sample, and how many tokens at most.
    ("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p")
    + ("epsilon_cutoff", "eta_cutoff", "renormalize_logits", "max_length", "max_new_tokens")
    # Ids, of which `generate.end_ids` reads the ends; where the file comes from.
    + ("bos_token_id", "eos_token_id", "pad_token_id", "_from_model_config", "transformers_version")
    # How transformers computes the same tokens, and what else it returns.
    + ("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory")
    + ("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size")
    + ("output_attentions", "output_hidden_states", "output_logits", "output_scores")
    + ("return_dict_in_generate", "is_assistant", "num_assistant_tokens", "assistant_early_exit")
    + ("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind")
    + ("target_lookbehind", "assistant_ensemble_weight", "max_matching_ngram_size")
)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "diversity_penalty": (0,),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "length_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "remove_invalid_values": (False,),
    "repetition_penalty": (1,),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "use_mtp": (False,),
}
"""Values that ask for nothing, beside null."""


def read(folder: Path | None) -> dict[str, Any]:
    """The file's content; {} without a folder or a file. Raises LabError for a file that is no JSON
    object.
    """
    path = None if folder is None else folder / "generation_config.json"
    if path is None or not path.is_file():
        return {}
    content = read_json(path, "write it again or remove it")
    if not isinstance(content, dict):
        raise LabError(f"{path} holds no JSON object: write it again or remove it")
    return content


def unfollowed(options: dict[str, Any]) -> list[str]:
    """`name=value` of each option that our generation does not implement."""
    return [
        f"{name}={str(value)[:60]}"
        for name, value in sorted(options.items())
        if name not in HARMLESS and value is not None and value not in NEUTRAL.get(name, ())
    ]


def check(folder: Path) -> None:
    """Raises LabError for a folder that asks for more than our generation does."""
    if more := unfollowed(read(folder)):
        raise LabError(
            f"{folder / 'generation_config.json'} asks for {', '.join(more)}, which our generation "
            "does not follow: remove it there, or generate with transformers"
        )
