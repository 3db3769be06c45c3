"""Completions for reinforcement learning: what a rollout is, and the protocol of the engines that
make it.

    prompts -> RolloutEngine.generate -> Rollout: num_generations completions per prompt

`RolloutEngine` is what the trainer calls; an engine of another library has to offer its two methods
and nothing else. Ours is `ring_engine.RingEngine`.

Log-probabilities are those of the softmax of logits / temperature over the whole vocabulary, before
top-p truncates it, which is what the trainer computes from the same tokens (float32: equal to 1e-4,
tests/reasoning/test_rollout.py).

Guarantees: plain values and tensors on the CPU, no module and no text cross the protocol.
Out of scope: sampling itself (ring_engine.py), speaking to a server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Finish = Literal["eos", "length"]
Decoding = Literal["graph", "kernels", "plain"]


def end_token_ids(eos_token_id: int | Sequence[int]) -> tuple[int, ...]:
    """The ids that end a completion, from one id or several (as in transformers' generation
    configuration). Raises ValueError for none.
    """
    ids = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    if not ids:
        raise ValueError("eos_token_id is empty: without an end token no completion ends by itself")
    return ids


@dataclass(frozen=True)
class SamplingSettings:
    """num_generations: completions per prompt. max_completion_length: response budget, the end
    token included.

    Raises ValueError for a temperature that is not above 0, a top_p outside (0, 1], and numbers
    below 1.
    """

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.num_generations < 1:
            raise ValueError(
                f"num_generations is {self.num_generations}; give 1 or more completions per prompt"
            )
        if self.max_completion_length < 1:
            raise ValueError(
                f"the response budget is {self.max_completion_length} tokens "
                "(max_completion_length); give 1 or more"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}; sampling needs more than 0 (greedy: "
                "`generate`)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a number above 0 and at most 1")


class BatchDecoder(Protocol):
    """What a rollout needs of a tokenizer."""

    def batch_decode(
        self, sequences: list[list[int]], *, skip_special_tokens: bool
    ) -> list[str]: ...


@dataclass(frozen=True, eq=False)
class Rollout:
    """N = prompts x num_generations completions, on the CPU; row r answers prompt
    r // num_generations.

    prompt_ids: N lists. completion_ids: int64 [N, T], padded after the end. completion_mask: bool
    [N, T], generated tokens, the end token included. log_probs: float32 [N, T], see the module's
    docstring; 0 where the mask is off. finish_reasons: eos or length, whichever came first.
    version: of the weights that sampled. seconds: wall-clock time of the call.
    """

    prompt_ids: list[list[int]]
    completion_ids: Tensor
    completion_mask: Tensor
    log_probs: Tensor
    finish_reasons: list[Finish]
    num_generations: int
    version: int
    seconds: float = 0.0

    @property
    def lengths(self) -> Tensor:
        """Generated tokens per row, int64 [N]."""
        return self.completion_mask.sum(dim=1)

    def tokens(self, row: int) -> list[int]:
        """Generated ids of a row, the end token included."""
        return self.completion_ids[row, : int(self.completion_mask[row].sum())].tolist()

    def texts(self, tokenizer: BatchDecoder) -> list[str]:
        """Completions as text, without special tokens."""
        rows = [
            ids[:length]
            for ids, length in zip(self.completion_ids.tolist(), self.lengths.tolist(), strict=True)
        ]
        return tokenizer.batch_decode(rows, skip_special_tokens=True)


class RolloutEngine(Protocol):
    """What samples completions: two calls, which return when they are done. Only token ids, numbers
    and a state dict are passed, no module, no tensor of a cache and no text, so an engine in
    another process or of another library can implement it.

    With vLLM, for which there is no adapter here: `generate` is `LLM.generate` on prompts of token
    ids with `SamplingParams(n=num_generations, max_tokens=.., temperature=.., top_p=.., seed=..,
    logprobs=0)`, in an engine started with `logprobs_mode="processed_logprobs"`, and `rollout_of`
    makes a rollout of its lists; `update_weights` sends the tensors to the workers'
    `load_weights`, which takes these names, and resets the prefix cache. At top_p below 1 its
    log-probabilities are those of the truncated distribution, not of the full one as here: train
    with top_p 1, or expect the logged difference. An engine need not give particular tokens for a
    seed, only samples from the weights that `update_weights` gave last.
    """

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, seed: int
    ) -> Rollout:
        """`num_generations` adjacent rows per prompt, in the order of the prompts; each ends with
        the end token or at the response budget.
        """
        ...

    def update_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Take over the trainer's weights, under transformers' names; `version` goes into the
        rollouts made with them. The tensors are the trainer's own: copy or send them before
        returning, it will change them.
        """
        ...


def rollout_of(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
    *,
    num_generations: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    version: int,
    seconds: float = 0.0,
) -> Rollout:
    """A rollout from the lists of another engine: `num_generations` completions per prompt, end
    tokens included, one log-probability per token.

    Raises ValueError for a wrong number of completions, an empty one, one that continues after its
    end token, or lengths that differ.
    """
    num_rows = len(prompts) * num_generations
    if not len(completions) == len(log_probs) == num_rows or not num_rows:
        raise ValueError(
            f"{len(prompts)} prompts x {num_generations} generations are {num_rows} rows, not "
            f"{len(completions)} completions with {len(log_probs)} lists of log-probabilities"
        )
    ends = frozenset(end_token_ids(eos_token_id))
    for row, (ids, values) in enumerate(zip(completions, log_probs, strict=True)):
        if not len(ids) or len(ids) != len(values):
            raise ValueError(f"row {row} has {len(ids)} tokens and {len(values)} log-probabilities")
        if not ends.isdisjoint(ids[:-1]):
            raise ValueError(f"row {row} continues after its end token: cut it there")
    lengths = torch.tensor([len(ids) for ids in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # [N, T]
    tokens, values = torch.full(mask.shape, pad_token_id), torch.zeros(mask.shape)
    tokens[mask] = torch.tensor([token for ids in completions for token in ids])
    values[mask] = torch.tensor([value for row in log_probs for value in row], dtype=torch.float32)
    finish: list[Finish] = ["eos" if ids[-1] in ends else "length" for ids in completions]
    repeated = [list(prompt) for prompt in prompts for _ in range(num_generations)]
    return Rollout(repeated, tokens, mask, values, finish, num_generations, version, seconds)


# --------------------------------------------------------------------------------------------------
# several rollouts as one

_TENSORS = ("completion_ids", "completion_mask", "log_probs")  # each [N, T]


def concatenate(rollouts: Sequence[Rollout]) -> Rollout:
    """The rows of several rollouts with the same num_generations, in their order; T is the largest
    of theirs, seconds too.
    """
    width = max(rollout.completion_ids.shape[1] for rollout in rollouts)
    tensors = {
        name: torch.cat([_padded(getattr(rollout, name), width) for rollout in rollouts])
        for name in _TENSORS
    }
    return Rollout(
        [prompt for rollout in rollouts for prompt in rollout.prompt_ids],
        **tensors,
        finish_reasons=[reason for rollout in rollouts for reason in rollout.finish_reasons],
        num_generations=rollouts[0].num_generations,
        version=rollouts[0].version,
        seconds=max(rollout.seconds for rollout in rollouts),
    )


def replace_groups(
    rollout: Rollout,
    rewards: np.ndarray,
    other: Rollout,
    other_rewards: np.ndarray,
    groups: Mapping[int, int],
) -> tuple[Rollout, np.ndarray]:
    """`rollout` and its rewards [N] with some groups of completions replaced by groups of `other`.

    groups: index of the replaced group to index of `other`'s group. T becomes the larger of both.
    """
    num_generations = rollout.num_generations
    width = max(rollout.completion_ids.shape[1], other.completion_ids.shape[1])
    # Cloned, because the rows are written below.
    tensors = {name: _padded(getattr(rollout, name), width).clone() for name in _TENSORS}
    sources = {name: _padded(getattr(other, name), width) for name in _TENSORS}
    prompts, finish_reasons = list(rollout.prompt_ids), list(rollout.finish_reasons)
    rewards = rewards.copy()
    for old, new in groups.items():
        for sample in range(num_generations):
            target, source = old * num_generations + sample, new * num_generations + sample
            prompts[target] = other.prompt_ids[source]
            finish_reasons[target] = other.finish_reasons[source]
            rewards[target] = other_rewards[source]
            for name in _TENSORS:
                tensors[name][target] = sources[name][source]
    replaced = Rollout(
        prompts,
        **tensors,
        finish_reasons=finish_reasons,
        num_generations=num_generations,
        version=rollout.version,
        seconds=rollout.seconds + other.seconds,
    )
    return replaced, rewards


def _padded(tensor: Tensor, width: int) -> Tensor:
    """[N, T] -> [N, width], zeros on the right."""
    return nn.functional.pad(tensor, (0, width - tensor.shape[1]))
