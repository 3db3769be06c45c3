"""Results of notebook 04 as tables and words: use of the pools, held-out scores, continuations, and
the check of the learning rates.

Guarantees: greedy continuations of the first held-out document of each language, none selected.
Out of scope: scoring (`evaluation.heldout`), verdicts.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from moxin_lab.model import generate
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining.packing import Tokens
from moxin_lab.scales.sections import PretrainingSettings

STATED_OPTIMIZER = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "weight_decay": 0.1,
    "final_learning_rate_ratio": 0.1,
}
"""AdamW and the end of the cosine as the technical report states them (v6, section 3.4)."""


def pool_use(pools: Mapping[str, Tokens], tokens_read: Mapping[str, int]) -> pd.DataFrame:
    """Documents and tokens of each pool, and how many of the tokens a training reads: one row per
    pool.
    """
    table = pd.DataFrame(
        {
            "documents": {name: len(tokens) for name, tokens in pools.items()},
            "tokens in the pool": {name: int(pool.offsets[-1]) for name, pool in pools.items()},
            "tokens this run reads": tokens_read,
        }
    )
    table["share read"] = table["tokens this run reads"] / table["tokens in the pool"]
    return table


def scores_by_language(scores: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte from `heldout.compare`: one row per language, one column per model, models in
    the order of the scores.
    """
    table = scores.pivot(index="group", columns="model", values="bits_per_byte")
    return table[list(dict.fromkeys(scores["model"]))].rename_axis(index="language")


def gaps_in_words(table: pd.DataFrame, model: str, baseline: str) -> str:
    """How far the bits per byte of a model are above or below a baseline's, by language, such as
    `12 % above in en, 3 % below in zh`. table: as `scores_by_language` returns it.
    """
    gaps = (table[model] / table[baseline] - 1) * 100
    return ", ".join(
        f"{abs(gap):.0f} % {'above' if gap > 0 else 'below'} in {language}"
        for language, gap in gaps.items()
    )


def continuations(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: pd.DataFrame,
    *,
    prompt_tokens: int = 24,
    new_tokens: int = 24,
) -> pd.DataFrame:
    """Greedy continuation of the first text of each language: one row per language.

    texts: columns language, text. The model must be on the CPU.
    """
    rows = {}
    for language, part in texts.groupby("language"):
        prompt = tokenizer(part["text"].iloc[0], add_special_tokens=True)["input_ids"]
        prompt = prompt[:prompt_tokens]
        # [1, prompt] -> [1, prompt + new]
        ids = generate.generate(model, torch.tensor([prompt]), max_new_tokens=new_tokens)[0]
        rows[language] = {
            "prompt": tokenizer.decode(prompt[1:]),  # without bos
            "continuation": tokenizer.decode(ids[len(prompt) :].tolist()),
        }
    return pd.DataFrame(rows).T.rename_axis("language")


def learning_rate_difference(log: pd.DataFrame, rates: Sequence[float]) -> float:
    """Largest difference between the learning rates that were used and those of the schedule, as a
    share of the peak. log: as `trainer.fit` returns it. rates: one per step.
    """
    return float((log["learning_rate"] - pd.Series(rates)).abs().max() / max(rates))


def has_stated_optimizer(settings: PretrainingSettings) -> bool:
    """Whether the section has every value of STATED_OPTIMIZER."""
    return all(getattr(settings, field) == value for field, value in STATED_OPTIMIZER.items())
