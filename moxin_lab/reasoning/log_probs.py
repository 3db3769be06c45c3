"""Log-probabilities of sampled tokens under a model, a bounded number of logits at a time.

Guarantees: the convention is that of rollout.py: the softmax of logits / temperature over the whole
vocabulary; memory for logits does not grow with the batch.
Out of scope: precision (the caller's autocast), micro-batches.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HEAD_TOKENS = 8192
"""Tokens whose logits are in memory at once: 1 GB in float32 at 32,000 ids."""
CPU_HEAD_TOKENS = 512
"""The same without gradients on the CPU, where the logits then fit the cache: a third less time."""


def completion_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    mask: Tensor,
    temperature: float,
    *,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token where the mask is on, and the entropy of the distribution it
    was drawn from, float32 [B, L - 1], 0 elsewhere.

    input_ids: int64 [B, L], padded on the right. mask: bool [B, L - 1], belongs to input_ids[:,
    1:]. Only tokens with loss go through the head. entropy_gradient: whether the entropy has a
    gradient, which a bonus for entropy needs and costs memory.
    """
    hidden = model.hidden_states(input_ids[:, :-1])[mask]  # [B, L - 1, D] -> [N, D]
    targets = input_ids[:, 1:][mask]  # [N]

    def head(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (model.lm_head(states).float() / temperature).log_softmax(dim=-1)  # [n, V]
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        return log_probs.gather(-1, tokens[:, None])[:, 0], entropy

    size = HEAD_TOKENS if hidden.is_cuda or torch.is_grad_enabled() else CPU_HEAD_TOKENS
    chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        # The head draws no random number, and reading the random state would break a graph that
        # another thread is capturing: so it is not preserved.
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        parts = [checkpoint(head, states, tokens, **options) for states, tokens in chunks]
    else:
        parts = [head(states, tokens) for states, tokens in chunks]
    empty = torch.zeros(mask.shape, device=mask.device)
    log_probs, entropy = (torch.cat([part[i] for part in parts]) for i in range(2))
    return empty.masked_scatter(mask, log_probs), empty.masked_scatter(mask, entropy)  # [B, L - 1]
