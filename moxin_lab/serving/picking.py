"""The next token of each row, by its job's settings: greedy, or sampled by temperature and top-p.

Guarantees: a row's token depends on its logits, its settings and its own random numbers only; the
log-probabilities are those of the model, before temperature and top-p.
Out of scope: when a token ends a text (`scheduler.py`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moxin_lab.reasoning.token_step import draw
from moxin_lab.serving.jobs import Job

GREEDY_BELOW = 1e-4
"""A lower temperature is greedy: logits divided by it would leave the range of float32."""
Top = tuple[Tensor, Tensor]
"""The largest log-probabilities of each row and the ids of their tokens, [R, k] each."""


def pick(logits: Tensor, jobs: Sequence[Job | None]) -> tuple[Tensor, Tensor, Top | None]:
    """Token ids int64 [R] and their log-probabilities [R] from logits [R, V], and the likeliest
    tokens where a job asks for them. A row without a job gets any token.
    """
    logits = logits.float()
    present = [job for job in jobs if job is not None]
    token = logits.argmax(dim=-1)
    if any(job.temperature > GREEDY_BELOW for job in present):
        hot = [job is not None and job.temperature > GREEDY_BELOW for job in jobs]
        token = torch.where(torch.tensor(hot, device=logits.device), _drawn(logits, jobs), token)
    total = logits.logsumexp(dim=-1)
    log_prob = logits.gather(1, token[:, None])[:, 0] - total
    most = max((job.logprobs or 0 for job in present), default=0)
    return token, log_prob, likeliest(logits - total[:, None], most) if most else None


def _drawn(logits: Tensor, jobs: Sequence[Job | None]) -> Tensor:
    """Sampled token ids int64 [R]."""
    settings = np.ones((3, len(jobs)), dtype=np.float32)  # temperature, top-p, uniform
    for place, job in enumerate(jobs):
        if job is not None and job.temperature > GREEDY_BELOW:
            settings[:, place] = job.temperature, job.top_p, job.random.random()
    settings[2].clip(max=1 - 2**-22, out=settings[2])
    temperature, top_p, uniform = torch.from_numpy(settings).to(logits.device)
    scaled = logits / temperature[:, None]
    if settings[1].min() < 1:
        ordered, ids = scaled.softmax(dim=-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        outside = torch.zeros_like(ordered, dtype=torch.bool)
        outside = outside.scatter(-1, ids, before >= top_p[:, None])
        scaled = scaled.masked_fill(outside, float("-inf"))
    return draw(scaled, uniform, torch.ones((), device=logits.device), 1.0)[0]


def likeliest(log_probs: Tensor, count: int) -> Top | None:
    """The `count` largest of log_probs [R, V]; None for no count."""
    if not count:
        return None
    values, ids = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    return values, ids


def pairs(top: Top | None, place: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of one row, (id, log-probability) each."""
    if top is None:
        return ()
    return tuple(zip(top[1][place].tolist(), top[0][place].tolist(), strict=True))
