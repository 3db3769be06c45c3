"""Direct preference optimisation: pairs, three losses, and the reference's log-probabilities,
computed once.

Guarantees: losses equal TRL's `sigmoid`, `sigmoid_norm` and `ipo` to 1e-6; a step's loss and
gradient do not depend on how it is cut (tests/posttraining/test_dpo.py); cached log-probabilities
are used only with the weights and pairs that they were computed from.
Out of scope: a reference model in memory during training.

Only the last answer of a conversation carries loss, so a shared history cancels and does not dilute
the length-normalised form.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab.progress import Progress
from moxin_lab.posttraining import chat
from moxin_lab.posttraining.batches import Layout, lay_out
from moxin_lab.posttraining.sft import answer_nats, token_losses
from moxin_lab.training.fit import LossFunction, Order, autocast
from moxin_lab.training.identity import digest

LossType = Literal["sigmoid", "dpo_norm", "ipo"]
LOSS_TYPES: tuple[LossType, ...] = ("sigmoid", "dpo_norm", "ipo")
EQUAL = "chosen and rejected answers are equal"
OTHER_PROMPT = "chosen and rejected answer different prompts"


@dataclass(frozen=True, eq=False)
class Pair:
    """Two conversations with the same prompt; `answer` marks the tokens of the last answer only."""

    chosen: chat.Encoded
    rejected: chat.Encoded
    index: int


def encode_pairs(
    chosen: Sequence[Any],
    rejected: Sequence[Any],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    max_refused_share: float,
) -> tuple[list[Pair], pd.DataFrame]:
    """Encode preference pairs, each side a whole conversation as in the Tülu 3 preference mixture;
    pairs, and a report by reason.

    Raises chat.ChatError as `chat.encode_all` does. A pair of which one side does not fit the
    context as a whole is omitted: the last turn is what is compared.
    """
    chat.require_template(tokenizer)
    if len(chosen) != len(rejected):
        raise chat.ChatError(
            f"{len(chosen)} chosen and {len(rejected)} rejected conversations: a pair needs one of "
            "each"
        )
    pairs: list[Pair] = []
    counts = dict.fromkeys((*chat.REFUSED, EQUAL, OTHER_PROMPT), 0)
    examples = dict.fromkeys(counts, "")
    for index, sides in enumerate(zip(chosen, rejected, strict=True)):
        reason, encoded = "", []
        for side in sides:
            whole, why = chat.encode(side, tokenizer, max_tokens=max_tokens, index=index)
            reason = reason or (chat.CUT if why == chat.SHORTENED else why)
            if whole is not None:
                encoded.append(_last_answer(whole))
        if not reason:
            (left, right), (first, second) = sides, encoded
            starts = [int(side.answer.argmax()) for side in encoded]
            if left[-1]["content"] == right[-1]["content"]:
                reason = EQUAL
            elif not np.array_equal(first.input_ids[: starts[0]], second.input_ids[: starts[1]]):
                reason = OTHER_PROMPT
            else:
                pairs.append(Pair(first, second, index))
        if reason:
            counts[reason] += 1
            examples[reason] = (
                examples[reason] or f"{index}: {str(sides[0])[:70]} | {str(sides[1])[:70]}"
            )
    report = pd.DataFrame(
        {
            "pairs": counts,
            "share": {k: v / max(1, len(chosen)) for k, v in counts.items()},
            "example": examples,
        }
    ).rename_axis("reason")
    refused = int(report["pairs"].sum())
    if not pairs or refused > max_refused_share * len(chosen):
        reasons = "; ".join(
            f"{name}: {count} ({examples[name]})" for name, count in counts.items() if count
        )
        raise chat.ChatError(
            f"{refused} of {len(chosen)} pairs cannot be compared, more than the stated share of "
            f"{max_refused_share:.1%}: {reasons or 'there are no pairs'}. Mend the data, or raise "
            "the context or the share"
        )
    return pairs, report


def _last_answer(encoded: chat.Encoded) -> chat.Encoded:
    """The same conversation with loss on its last answer only."""
    before = np.flatnonzero(~encoded.answer)
    answer = encoded.answer.copy()
    answer[: before[-1]] = False  # the last token without loss is the one before the last answer
    return replace(encoded, answer=answer)


def preference_losses(
    log_probs: Tensor,
    reference: Tensor,
    num_tokens: Tensor,
    *,
    loss_type: LossType,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of each pair, [N], from log-probabilities [N, 2] (chosen, rejected) under the policy and
    the reference.

    With r = log-probability ratio of an answer to the reference, and |y| its tokens:

    - `sigmoid`: -log sigmoid(beta (r_c - r_r)). Rafailov et al. 2023, arXiv 2305.18290, equation 7.
    - `dpo_norm`: the same with r / |y|. Lambert et al. 2024 (Tülu 3), arXiv 2411.15124, section 5;
      Moxin's script, with beta 5.
    - `ipo`: (r_c / |y_c| - r_r / |y_r| - 1 / (2 beta))^2. Azar et al. 2023, arXiv 2310.12036,
      equation 17; its authors use the mean over tokens (according to TRL's source).

    label_smoothing s: the pair is assumed to be swapped with probability s (the two sigmoid losses
    only). Raises ValueError for another loss, and for `ipo` with label smoothing.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(
            f"unknown preference loss {loss_type!r}: available are {', '.join(LOSS_TYPES)}"
        )
    if loss_type == "ipo" and label_smoothing:
        raise ValueError("label_smoothing is defined for sigmoid and dpo_norm, not for ipo")
    ratios = log_probs - reference
    if loss_type != "sigmoid":
        ratios = ratios / num_tokens
    margin = ratios[:, 0] - ratios[:, 1]  # [N, 2] -> [N]
    if loss_type == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    return -(1 - label_smoothing) * F.logsigmoid(beta * margin) - label_smoothing * F.logsigmoid(
        -beta * margin
    )


class PairStream:
    """Batches of preference optimisation: `lay_out` of a part's chosen and rejected sequences, with
    `reference` [P, 2], `num_tokens` [P, 2] and `pairs_in_step`. Sequence 2p is pair p's chosen
    answer, 2p + 1 its rejected one.
    """

    in_other_processes = True

    def __init__(
        self,
        pairs: Sequence[Pair],
        reference: np.ndarray,
        *,
        examples_per_step: int,
        epochs: int,
        row_tokens: int,
        seed: int,
        pad_id: int,
        layout: Layout = "packed",
    ) -> None:
        if reference.shape != (len(pairs), 2):
            raise ValueError(f"reference has shape {reference.shape}, not [{len(pairs)}, 2]")
        self.order = Order(
            len(pairs), examples_per_step=examples_per_step, epochs=epochs, seed=seed
        )
        self.num_steps, self.examples_per_step = self.order.num_steps, examples_per_step
        self._pairs, self._reference = pairs, reference
        self._row_tokens, self._pad_id, self._layout = row_tokens, pad_id, layout

    def batch(self, step: int, part: int = 0, parts: int = 1) -> dict[str, Tensor]:
        indices = self.order.part(step, part, parts)
        sequences = [
            side
            for index in indices
            for side in (self._pairs[index].chosen, self._pairs[index].rejected)
        ]
        batch = lay_out(
            sequences, row_tokens=self._row_tokens, layout=self._layout, pad_id=self._pad_id
        )
        batch["reference"] = torch.from_numpy(self._reference[indices])
        batch["num_tokens"] = torch.tensor([side.num_targets for side in sequences]).view(-1, 2)
        batch["pairs_in_step"] = torch.tensor(self.examples_per_step)
        return batch

    def fingerprint(self) -> str:
        """Digest of the pairs, the reference's log-probabilities, order and layout."""
        layout = (self._row_tokens, self._pad_id, self._layout)
        return digest(self._pairs, self._reference, self.order.fingerprint(), layout)

    def describe(self, step: int) -> str:
        return f"pairs {[self._pairs[i].index for i in self.order.step(step)][:5]} and more"


def dpo_loss(loss_type: LossType, beta: float, label_smoothing: float = 0.0) -> LossFunction:
    """The loss function for `fit_language_model`; logs sums over pairs: `pairs`, `correct` (margin
    of the ratio above 0), and the mean log-ratios per token, `chosen_ratio` and `rejected_ratio`.
    """
    return partial(_dpo_loss, loss_type=loss_type, beta=beta, label_smoothing=label_smoothing)


def sequence_log_probs(model: nn.Module, batch: dict[str, Tensor], num_sequences: int) -> Tensor:
    """Log-probability of each sequence's labelled tokens, [num_sequences]."""
    _, plain, chosen = token_losses(model, batch)
    return torch.zeros(num_sequences, dtype=plain.dtype, device=plain.device).index_add(
        0, batch["sequences"][chosen], -plain
    )


def _dpo_loss(
    model: nn.Module,
    batch: dict[str, Tensor],
    *,
    loss_type: LossType,
    beta: float,
    label_smoothing: float,
) -> dict[str, Tensor]:
    log_probs = sequence_log_probs(model, batch, batch["num_tokens"].numel()).view(-1, 2)
    reference = batch["reference"].to(log_probs.dtype)
    losses = preference_losses(
        log_probs,
        reference,
        batch["num_tokens"],
        loss_type=loss_type,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    ratios = (log_probs - reference) / (1 if loss_type == "sigmoid" else batch["num_tokens"])
    per_token = (log_probs - reference) / batch["num_tokens"]
    return {
        "loss": losses.sum() / batch["pairs_in_step"],
        "pairs": torch.tensor(len(losses)),
        "correct": (ratios[:, 0] > ratios[:, 1]).sum(),
        "chosen_ratio": per_token[:, 0].sum(),
        "rejected_ratio": per_token[:, 1].sum(),
    }


def pair_log_probs(
    model: nn.Module,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int,
    device: Any = "cpu",
    precision: str = "32-true",
) -> np.ndarray:
    """Log-probabilities of chosen and rejected answers, float64 [N, 2], without gradient or
    dropout.

    precision: as in training (`bf16-mixed`, `16-mixed`: under autocast), so that a policy equal to
    its reference has ratio 0.
    """
    was_training = model.training
    model.eval()
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    with autocast(precision, torch.device(device)):
        nats, _ = answer_nats(model, sides, batch_tokens=batch_tokens, device=device)
    model.train(was_training)
    return -nats.reshape(-1, 2)


def answer_lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """Tokens with loss of chosen and rejected answers, int64 [N, 2]."""
    return np.array([[pair.chosen.num_targets, pair.rejected.num_targets] for pair in pairs])


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights, names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """SHA-256 of the token ids and loss tokens of all pairs, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            digest.update(
                np.int64(len(side)).tobytes() + side.input_ids.tobytes() + side.answer.tobytes()
            )
    return digest.hexdigest()


def reference_log_probs(
    model: nn.Module,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    batch_tokens: int,
    device: Any = "cpu",
    precision: str = "32-true",
    progress: Progress | None = None,
) -> np.ndarray:
    """`pair_log_probs` of the reference, float64 [N, 2]: read from `folder` if computed from these
    weights and pairs, else computed and saved there.
    """
    model_key, pairs_key = weights_hash(model), pairs_hash(pairs)
    path = folder / f"reference-{model_key[:16]}-{pairs_key[:16]}-{precision}.npz"
    if path.is_file():
        with np.load(path) as saved:
            if str(saved["model"]) == model_key and str(saved["pairs"]) == pairs_key:
                return saved["log_probs"]
    if progress is not None:
        progress(0, 1, "log-probabilities of the reference")
    log_probs = pair_log_probs(
        model, pairs, batch_tokens=batch_tokens, device=device, precision=precision
    )
    folder.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial.npz")
    np.savez(partial_path, log_probs=log_probs, model=model_key, pairs=pairs_key)
    partial_path.replace(path)
    return log_probs
