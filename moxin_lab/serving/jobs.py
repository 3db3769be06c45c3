"""What the scheduler takes and gives: jobs, and the events of each.

Guarantees: none of its own; see `scheduler.py`.
Out of scope: how a job runs, and where its events go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class Busy(RuntimeError):
    """More requests wait than the queue holds: try again later."""


class Stopped(RuntimeError):
    """The scheduler has stopped or failed: nothing is taken any more."""


@dataclass(frozen=True)
class TokenScore:
    """A token, its log-probability in nats (None for the first of a text and for image patches),
    and the likeliest tokens in its place, likeliest first.
    """

    token_id: int
    log_prob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What a round brought to a job. text: what may be shown now. finish: "stop", "length",
    "cancelled", "timeout" or "error", with `error` as its reason; the last event of a job has it.
    """

    text: str = ""
    score: TokenScore | None = None
    prompt_scores: tuple[TokenScore, ...] | None = None
    embedding: Tensor | None = None
    finish: str | None = None
    error: str = ""


Accept = Callable[[int], tuple[str, bool]]
"""Given a token id: the text that may be shown now, and whether a stop string has been met."""


@dataclass(eq=False)
class Job:
    """One completion, score or embedding.

    prompt_ids: with one id per image patch, in the place of the patches.
    embed: makes the prompt's embeddings [1, T, C] on the model's thread; default: of `prompt_ids`.
    max_tokens: 0 reads the prompt only. logprobs, prompt_logprobs: likeliest tokens to report for
    each new token, or of the prompt; None: no log-probabilities. pool: ask for the mean of the last
    hidden states instead of tokens. deadline: in `time.monotonic`.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    accept: Accept
    finish: Callable[[], str] = lambda: ""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | tuple[int, ...] | None = None
    end_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    pool: bool = False
    embed: Callable[[], Tensor] | None = None
    patch_ids: frozenset[int] = frozenset()
    deadline: float = float("inf")
    owner: Any = None
    """Where events go; the scheduler does not look at it."""
    # The scheduler's own:
    done: bool = field(default=False, init=False)
    row: int | None = field(default=None, init=False)
    sampled: int = field(default=0, init=False)
    read: int = field(default=0, init=False)
    random: Any = field(default=None, init=False)
    embeddings: Tensor | None = field(default=None, init=False)
    scores: list[TokenScore] = field(default_factory=list, init=False)
    pooled: Tensor | None = field(default=None, init=False)
