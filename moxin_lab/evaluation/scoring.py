"""Log-likelihoods of token sequences under a causal model, in padded batches: the one place where a
model is scored.

Guarantees: sequences sorted by length, padded on the right, padding neither scored nor (the model
being causal) attended to; results come back in the order of the requests and do not depend on how
they were batched.
Does not: tokenize, cut or window anything; callers hand over sequences that fit the model.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Request(NamedTuple):
    """Score the last `num_scored` tokens of `tokens`, each given all tokens before it."""

    tokens: Sequence[int]
    num_scored: int


class Score(NamedTuple):
    nats: float
    """Negative log-likelihood of the scored tokens, natural logarithm."""
    is_greedy: bool
    """True if each scored token is the model's most likely one."""


def score(
    model: Any,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 4096,
    pad_id: int = 0,
    device: Any = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Score each request with `model(input_ids[B, T])`, which gives logits `[B, T, V]` or an object
    with them as `.logits`.

    Args:
        batch_tokens: most tokens of one forward pass, padding included (at least one sequence).
        pad_id: any valid id; it is never scored.
        progress: called with requests done and requests in all.
    Raises ValueError for a request without a token before the scored ones.
    """
    import torch

    for number, request in enumerate(requests):
        if not 1 <= request.num_scored < len(request.tokens):
            counts = f"{request.num_scored} of {len(request.tokens)} tokens"
            raise ValueError(
                f"request {number} scores {counts}: at least one, and one must stand before them"
            )
    order = sorted(
        range(len(requests)), key=lambda i: -len(requests[i].tokens)
    )  # longest first: memory trouble shows at once
    results = [Score(0.0, True)] * len(requests)
    was_training = bool(getattr(model, "training", False))
    if was_training:
        model.eval()
    done = 0
    with torch.inference_mode():
        while done < len(order):
            width = len(requests[order[done]].tokens) - 1
            batch = order[done : done + max(1, batch_tokens // width)]
            inputs = torch.full((len(batch), width), pad_id)
            targets = torch.full((len(batch), width), -1)
            for row, i in enumerate(batch):
                tokens = torch.as_tensor(requests[i].tokens)
                last = len(tokens) - 1
                inputs[row, :last] = tokens[:-1]
                targets[row, last - requests[i].num_scored : last] = tokens[
                    -requests[i].num_scored :
                ]
            for i, found in zip(
                batch, _score_rows(model, inputs.to(device), targets.to(device)), strict=True
            ):
                results[i] = found
            done += len(batch)
            if progress is not None:
                progress(done, len(requests))
    if was_training:
        model.train()
    return results


def _score_rows(model: Any, inputs: Any, targets: Any) -> list[Score]:
    import torch
    import torch.nn.functional as F

    output = model(inputs)
    logits = getattr(output, "logits", output)
    rows, columns = torch.nonzero(targets >= 0, as_tuple=True)
    wanted, scored = targets[rows, columns], logits[rows, columns].float()
    nats = torch.zeros(len(inputs), dtype=torch.float64, device=scored.device)
    nats.index_add_(0, rows, F.cross_entropy(scored, wanted, reduction="none").double())
    misses = torch.zeros(len(inputs), device=scored.device)
    misses.index_add_(0, rows, (scored.argmax(-1) != wanted).float())
    return [
        Score(loss, miss == 0) for loss, miss in zip(nats.tolist(), misses.tolist(), strict=True)
    ]
