"""Log-likelihoods of token sequences under a causal language model, in padded batches.

Every evaluation of log-likelihoods goes through `score`.

Guarantees: sequences are padded on the right, so that a causal model never attends to padding, and
padding is not scored; results are in the order of the requests and do not depend on batching;
requests that differ in their last token only, such as choices of one token, share a row.
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
    sharing: dict[tuple[int, ...], list[int]] = {}  # requests by what the model reads
    for index, request in enumerate(requests):
        sharing.setdefault(tuple(request.tokens[:-1]), []).append(index)
    rows = sorted(sharing, key=len, reverse=True)  # running out of memory shows at once
    results = [Score(0.0, True)] * len(requests)
    # A model may be any callable; an `nn.Module` leaves training mode for the duration.
    module: Any = model if getattr(model, "training", False) else None
    if module is not None:
        module.eval()
    first = done = 0
    with torch.inference_mode():
        while first < len(rows):
            width = len(rows[first])
            batch = rows[first : first + max(1, batch_tokens // width)]
            first += len(batch)
            inputs = torch.full((len(batch), width), pad_id)
            for row, tokens in enumerate(batch):
                inputs[row, : len(tokens)] = torch.as_tensor(tokens)
            output = model(inputs.to(device))
            logits = getattr(output, "logits", output)  # [B, T, V]
            scored = [(row, i) for row, tokens in enumerate(batch) for i in sharing[tokens]]
            batch_scores = _score_rows(logits, [(row, requests[i]) for row, i in scored])
            for (_, i), result in zip(scored, batch_scores, strict=True):
                results[i] = result
            done += len(scored)
            if progress is not None:
                progress(done, len(requests))
    if module is not None:
        module.train()
    return results


def _score_rows(logits: "torch.Tensor", requests: Sequence[tuple[int, Request]]) -> list[Score]:
    """One score per request, given with its row of logits [B, T, V]."""
    import torch

    row_of: list[int] = []
    column_of: list[int] = []
    labels: list[int] = []
    request_of: list[int] = []
    for index, (row, request) in enumerate(requests):
        end, count = len(request.tokens) - 1, request.num_scored
        row_of += [row] * count
        column_of += range(end - count, end)
        labels += request.tokens[-count:]
        request_of += [index] * count
    device = logits.device
    rows, columns, targets, owners = (
        torch.as_tensor(values, device=device) for values in (row_of, column_of, labels, request_of)
    )
    # Positions that several requests share are read once: [N] into [P].
    positions, position_of = (rows * logits.shape[1] + columns).unique(return_inverse=True)
    read = logits.flatten(0, 1)[positions].float()  # [P, V]
    log_likelihoods = read.log_softmax(-1)[position_of, targets].double()  # [N]
    nats = torch.zeros(len(requests), dtype=torch.float64, device=device)
    nats.index_add_(0, owners, -log_likelihoods)
    misses = torch.zeros(len(requests), device=device)
    misses.index_add_(0, owners, (read.argmax(-1)[position_of] != targets).float())
    return [
        Score(loss, count == 0) for loss, count in zip(nats.tolist(), misses.tolist(), strict=True)
    ]
