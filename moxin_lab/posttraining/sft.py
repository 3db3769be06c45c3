"""Supervised fine-tuning: the loss on answers alone, and held-out answers scored by it.

Guarantees: the loss equals TRL's `SFTTrainer` (reduction `mean`) to 1e-6, and is the same for packed and padded rows, for any
micro-batches and on several ranks (tests/posttraining/test_sft.py). Only tokens with loss go through the head.
Does not: choose data (notebook) or step (fitting.py).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moxin_lab.posttraining.batches import IGNORE, lay_out
from moxin_lab.posttraining.chat import Encoded
from moxin_lab.posttraining.fitting import LossFunction


def token_losses(
    model: nn.Module, batch: dict[str, Tensor], *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the tokens that have a label, float32 [N] in row order: smoothed loss, plain negative log-likelihood, and where
    they stand (bool [B, T]).

    Smoothing by s: (1 - s) x negative log-likelihood + s x its mean over the vocabulary (Szegedy et al. 2016, arXiv 1512.00567).
    """
    chosen = batch["labels"] != IGNORE
    hidden_states: Tensor = model.hidden_states(batch["input_ids"], document_ids=batch.get("document_ids"))
    logits = model.lm_head(hidden_states[chosen])
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    log_probs = logits.log_softmax(dim=-1)
    plain = F.nll_loss(log_probs, batch["labels"][chosen], reduction="none")
    smoothed = plain
    if label_smoothing:
        smoothed = (1 - label_smoothing) * plain - label_smoothing * log_probs.mean(dim=-1)
    return smoothed, plain, chosen


def sft_loss(label_smoothing: float = 0.0) -> LossFunction:
    """The loss function for `fitting.fit`; logs `nats` and `targets`, whose quotient is the loss a token of the step."""
    return partial(_sft_loss, label_smoothing=label_smoothing)


def _sft_loss(model: nn.Module, batch: dict[str, Tensor], *, label_smoothing: float) -> dict[str, Tensor]:
    losses, plain, chosen = token_losses(model, batch, label_smoothing=label_smoothing)
    share = (losses * batch["weights"][chosen]).sum()
    return {"loss": share, "nats": plain.sum(), "targets": chosen.sum()}


@torch.inference_mode()
def answer_nats(
    model: nn.Module, encoded: Sequence[Encoded], *, batch_tokens: int, device: Any = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each conversation's answers and how many tokens they have, float64 [N] each.

    Sorted by length and padded; at most `batch_tokens` tokens a forward pass, padding included (at least one conversation).
    """
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    nats = np.zeros(len(encoded))
    done = 0
    while done < len(order):
        width = len(encoded[order[done]]) - 1
        numbers = order[done : done + max(1, batch_tokens // width)]
        rows = [encoded[number] for number in numbers]
        batch = {
            name: tensor.to(device)
            for name, tensor in lay_out(rows, row_tokens=width, layout="padded", pad_id=0).items()
        }
        _, plain, chosen = token_losses(model, batch)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=plain.device)
        sums.index_add_(0, batch["sequences"][chosen], plain.double())
        nats[numbers] = sums.cpu().numpy()
        done += len(numbers)
    return nats, np.array([sequence.num_targets for sequence in encoded], dtype=np.float64)
