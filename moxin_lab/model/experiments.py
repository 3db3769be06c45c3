"""Experiments of notebook 03 that build more than one model or mask.

Guarantees: models are untrained and initialised from the seed that is given; nothing is trained.
Out of scope: the measurements themselves, which are in `measures`; verdicts.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.model import measures
from moxin_lab.model.config import MoxinConfig
from moxin_lab.model.convert import best_device
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.expansion import RECIPES, expand
from moxin_lab.model.mask import AttentionMask
from moxin_lab.scales.sections import ModelSettings


def new_model(config: MoxinConfig, seed: int) -> MoxinForCausalLM:
    """An untrained model; equal configurations and seeds give equal weights."""
    return MoxinForCausalLM(config, generator=torch.Generator().manual_seed(seed))


def without_storage(config: MoxinConfig) -> MoxinForCausalLM:
    """A model on PyTorch's `meta` device: shapes and no weights, at any size."""
    with torch.device("meta"):
        return MoxinForCausalLM(config)


def with_blocks(config: MoxinConfig, num_hidden_layers: int) -> MoxinConfig:
    """The same shape with another depth."""
    return dataclasses.replace(config, num_hidden_layers=num_hidden_layers)


def configuration(settings: ModelSettings, tokenizer_folder: Path) -> MoxinConfig:
    """The sizes of a scale with the vocabulary and special tokens of a saved tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    return MoxinConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings.model_dump(),
    )


def example_masks() -> dict[str, np.ndarray]:
    """Three masks of a row of 48 tokens, bool [queries, keys]: causal, a window of 12, and the
    window with two packed documents of 20 and 22 tokens and 6 tokens of padding.
    """
    document_ids = torch.tensor([[0] * 20 + [1] * 22 + [-1] * 6])
    masks = {
        "causal": AttentionMask.build(48, sliding_window=None),
        "window of 12": AttentionMask.build(48, sliding_window=12),
        "two documents, padding": AttentionMask.build(
            48, sliding_window=12, document_ids=document_ids
        ),
    }
    return {
        title: mask.dense[0, 0].numpy()  # [B, 1, T, S] -> [T, S]
        for title, mask in masks.items()
        if mask.dense is not None
    }


def parity_by_deviation(
    config: MoxinConfig, deviations: Sequence[float], lengths: list[int], seed: int
) -> pd.DataFrame:
    """`measures.parity_with_transformers` for weights drawn at several standard deviations.

    Further column: deviation.
    """
    frames = []
    for deviation in deviations:
        drawn = dataclasses.replace(config, initializer_range=deviation)
        model = new_model(drawn, seed).eval().to(best_device())
        frame = measures.parity_with_transformers(model, lengths, seed)
        frames.append(frame.assign(deviation=deviation))
    return pd.concat(frames, ignore_index=True)


def influence_by_depth(
    config: MoxinConfig, depths: Sequence[int], window: int, seed: int, progress: Progress
) -> dict[int, pd.DataFrame]:
    """`measures.influence` in float64 for models of several numbers of blocks.

    Every model has this window, and every text is longer than the reach of `config`'s depth.
    """
    frames = {}
    for depth in depths:
        shallow = dataclasses.replace(
            config, num_hidden_layers=depth, sliding_window=window, max_position_embeddings=2048
        )
        model = new_model(shallow, seed).double().to(best_device())
        length = config.num_hidden_layers * window + 8
        frames[depth] = measures.influence(model, length, seed)
        progress(depth, config.num_hidden_layers, f"influence through {depth} blocks")
    return frames


@torch.no_grad()
def changes_by_expansion(
    config: MoxinConfig, num_old: int, num_new: int, seed: int, *, num_tokens: int = 300
) -> dict[str, float]:
    """Largest change of any logit when an untrained model of `num_old` blocks is expanded to
    `num_new`, by recipe, over random tokens.
    """
    old = new_model(with_blocks(config, num_old), seed).eval().to(best_device())
    ids = measures.random_tokens(config, 1, num_tokens, seed).to(best_device())
    before = old(ids)
    return {
        recipe: (expand(old, num_new, recipe)(ids) - before).abs().max().item()
        for recipe in RECIPES
    }
