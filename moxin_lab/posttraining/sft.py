"""Supervised fine-tuning: the loss on answers alone, and held-out answers scored by it.

Guarantees: the loss equals TRL's `SFTTrainer` (reduction `mean`) to 1e-6, and is the same for
packed and padded rows, for any micro-batches and on several ranks (tests/posttraining/test_sft.py).
Only tokens with loss go through the head.
Out of scope: choosing data (the notebook does), stepping an optimizer (training/fit.py).
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from moxin_lab.model import convert
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining.batches import IGNORE_INDEX, lay_out
from moxin_lab.posttraining.chat import Encoded, tulu_template
from moxin_lab.training.fit import LossFunction


def with_dropout(model: MoxinForCausalLM, dropout: float) -> MoxinForCausalLM:
    """A model with the same weights and this dropout rate in attention and feed-forward layers;
    the model itself if it has this rate.
    """
    if model.config.attention_dropout == model.config.mlp_dropout == dropout:
        return model
    changed = MoxinForCausalLM(
        replace(model.config, attention_dropout=dropout, mlp_dropout=dropout)
    )
    changed.load_state_dict(model.state_dict())
    return changed


def export(model: MoxinForCausalLM, tokenizer_folder: Path, folder: Path) -> Path:
    """A checkpoint that transformers can chat with: weights, configuration without dropout, the
    tokenizer's own files and the template. The tokenizer is copied, not saved again, so that the
    same run gives the same bytes everywhere.
    """
    convert.save_pretrained(with_dropout(model, 0.0), folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    template = tulu_template(PreTrainedTokenizerFast.from_pretrained(tokenizer_folder))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def token_losses(
    model: nn.Module, batch: dict[str, Tensor], *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the N tokens that have a label, in row order: smoothed loss and plain negative
    log-likelihood, float32 [N] each, and the tokens' positions, bool [B, T].

    Smoothing by s: (1 - s) x negative log-likelihood + s x its mean over the vocabulary (Szegedy et
    al. 2016, arXiv 1512.00567).
    """
    chosen = batch["labels"] != IGNORE_INDEX
    hidden_states: Tensor = model.hidden_states(
        batch["input_ids"], document_ids=batch.get("document_ids")
    )
    logits = model.lm_head(hidden_states[chosen])  # [B, T, C] -> [N, C] -> [N, V]
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    log_probs = logits.log_softmax(dim=-1)
    plain = F.nll_loss(log_probs, batch["labels"][chosen], reduction="none")
    smoothed = plain
    if label_smoothing:
        smoothed = (1 - label_smoothing) * plain - label_smoothing * log_probs.mean(dim=-1)
    return smoothed, plain, chosen


def sft_loss(label_smoothing: float = 0.0) -> LossFunction:
    """The loss function for `fit_language_model`; logs `nats` and `targets`: nats / targets is the
    step's loss per token.
    """
    return partial(_sft_loss, label_smoothing=label_smoothing)


def _sft_loss(
    model: nn.Module, batch: dict[str, Tensor], *, label_smoothing: float
) -> dict[str, Tensor]:
    losses, plain, chosen = token_losses(model, batch, label_smoothing=label_smoothing)
    share = (losses * batch["weights"][chosen]).sum()
    return {"loss": share, "nats": plain.sum(), "targets": chosen.sum()}


@torch.inference_mode()
def answer_nats(
    model: nn.Module, encoded: Sequence[Encoded], *, batch_tokens: int, device: Any = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each conversation's answers in nats, and their number of tokens,
    float64 [N] each.

    Sorted by length and padded; at most `batch_tokens` tokens per forward pass, padding included
    (but at least one conversation).
    """
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    nats = np.zeros(len(encoded))
    done = 0
    while done < len(order):
        width = len(encoded[order[done]]) - 1
        # A power of two, so that there are few shapes to compile for.
        rows_at_once = 1 << max(0, (batch_tokens // width).bit_length() - 1)
        indices = order[done : done + rows_at_once]
        rows = [encoded[index] for index in indices]
        batch = {
            name: tensor.to(device)
            for name, tensor in lay_out(rows, row_tokens=width, layout="padded", pad_id=0).items()
        }
        _, plain, chosen = token_losses(model, batch)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=plain.device)
        sums.index_add_(0, batch["sequences"][chosen], plain.double())
        nats[indices] = sums.cpu().numpy()
        done += len(indices)
    return nats, np.array([sequence.num_targets for sequence in encoded], dtype=np.float64)
