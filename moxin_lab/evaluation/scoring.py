"""Log-likelihoods of token sequences under a causal language model, in padded batches.

Every evaluation of log-likelihoods goes through `score`.

Guarantees: sequences are padded on the right, so that a causal model never attends to padding, and
padding is not scored; results are in the order of the requests and do not depend on batching.
Out of scope: tokenizing, cutting or windowing. Callers pass sequences that fit the model.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class CausalLM(Protocol):
    """A causal language model, for scoring."""

    def __call__(self, input_ids: "torch.Tensor", /) -> Any:
        """From ids int64 [B, T], logits [B, T, V], or an object with them as `.logits`."""
        ...


class Request(NamedTuple):
    """A sequence whose last `num_scored` tokens are scored, each given all tokens before it."""

    tokens: Sequence[int]
    num_scored: int


class Score(NamedTuple):
    """The result of one request."""

    nats: float
    """Negative log-likelihood of the scored tokens, with the natural logarithm."""
    is_greedy: bool
    """True if every scored token is the most likely one under the model."""


def score(
    model: CausalLM,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 4096,
    pad_id: int = 0,
    device: "torch.device | str" = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Scores each request, in evaluation mode and without gradients.

    Args:
        batch_tokens: most tokens in one forward pass, padding included (at least one sequence).
        pad_id: any valid id; it is never scored.
        progress: called with (requests done, requests in all).
    Raises ValueError for a request that scores no token, or that has none before the scored ones.
    """
    import torch

    for index, request in enumerate(requests):
        if not 1 <= request.num_scored < len(request.tokens):
            counts = f"{request.num_scored} of {len(request.tokens)} tokens"
            raise ValueError(
                f"request {index} scores {counts}: it must score at least one, "
                "and have at least one before them"
            )
    # Longest first, so that running out of memory shows at once.
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
    results = [Score(0.0, True)] * len(requests)
    # A model may be any callable; an `nn.Module` leaves training mode for the duration.
    module: Any = model if getattr(model, "training", False) else None
    if module is not None:
        module.eval()
    done = 0
    with torch.inference_mode():
        while done < len(order):
            width = len(requests[order[done]].tokens) - 1
            # Rows of one batch: inputs and targets int64 [B, width]; a target of -1 is not scored.
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
            rows = _score_rows(model, inputs.to(device), targets.to(device))
            for i, row_score in zip(batch, rows, strict=True):
                results[i] = row_score
            done += len(batch)
            if progress is not None:
                progress(done, len(requests))
    if module is not None:
        module.train()
    return results


def _score_rows(model: CausalLM, inputs: "torch.Tensor", targets: "torch.Tensor") -> list[Score]:
    """One score per row. inputs, targets: int64 [B, T]; a target below 0 is not scored."""
    import torch
    import torch.nn.functional as F

    output = model(inputs)
    logits = getattr(output, "logits", output)  # [B, T, V]
    rows, columns = torch.nonzero(targets >= 0, as_tuple=True)
    labels, scored = targets[rows, columns], logits[rows, columns].float()  # [N], [N, V]
    nats = torch.zeros(len(inputs), dtype=torch.float64, device=scored.device)
    nats.index_add_(0, rows, F.cross_entropy(scored, labels, reduction="none").double())
    misses = torch.zeros(len(inputs), device=scored.device)
    misses.index_add_(0, rows, (scored.argmax(-1) != labels).float())
    return [
        Score(loss, count == 0) for loss, count in zip(nats.tolist(), misses.tolist(), strict=True)
    ]
