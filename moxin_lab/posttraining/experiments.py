"""The two trainings of stage 05 as functions, which a notebook runs for several seeds.

    pretrained ─ fine_tune ─► SFT model ─ collect_pairs ─► pairs ─ prefer ─► preference-tuned model

A seed determines the order of the examples, dropout and the sampled answers; all seeds start from
the same pretrained model.

Guarantees: the same seed and settings give the same models and pairs (bitwise on the CPU); a killed
training continues from its folder.
Out of scope: choosing settings; the template (`chat`), the losses (`sft`, `dpo`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast, pipeline

from moxin_lab.lab.progress import Progress
from moxin_lab.lab.seeds import over_seeds as over_seeds  # of `outcomes`; notebook 05
from moxin_lab.model import convert
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.model.experiments import new_model
from moxin_lab.posttraining import batches, dpo, sampling, sft, tables
from moxin_lab.posttraining.chat import Encoded
from moxin_lab.scales.sections import InstructionTuningSettings, ReasoningSettings
from moxin_lab.training import side_by_side
from moxin_lab.training.fit import fit_language_model


@dataclass(frozen=True)
class PreferencePairs:
    """Result of `collect_pairs`.

    pairs: to train on. lost: omitted pairs by reason. sampled: on-policy pairs. drawn: number of
    prompts that were always, never and sometimes answered correctly. prompts: number of prompts
    answered. of_card: number of pairs from the card.
    """

    pairs: list[dpo.Pair]
    lost: pd.DataFrame
    sampled: pd.DataFrame
    drawn: dict[str, int]
    prompts: int
    of_card: int

    def in_words(self, num_generations: int) -> str:
        """What was drawn, in a sentence."""
        return (
            f"Of {self.prompts} prompts answered {num_generations} times, "
            f"{self.drawn['all right']} were always correct, {self.drawn['all wrong']} never, "
            f"{self.drawn['mixed']} sometimes: {len(self.sampled)} on-policy pairs and "
            f"{self.of_card} of the card."
        )


@dataclass(frozen=True)
class Tests:
    """The data that models are evaluated on: rows of the card's test split, the same encoded, and
    held-out pairs.
    """

    rows: pd.DataFrame
    encoded: Sequence[Encoded]
    pairs: Sequence[dpo.Pair]


def fine_tune(
    pretrained: Path,
    encoded: Sequence[Encoded],
    settings: InstructionTuningSettings | ReasoningSettings,
    *,
    seed: int,
    pad_id: int,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[MoxinForCausalLM, pd.DataFrame]:
    """The SFT model, in evaluation mode on the device of its training, and its log."""
    chosen = settings.sft
    torch.manual_seed(seed)  # dropout draws from the global generator
    model = sft.with_dropout(convert.from_pretrained(pretrained), chosen.dropout)
    stream = batches.ConversationStream(
        encoded,
        examples_per_step=chosen.examples_per_step,
        epochs=chosen.epochs,
        seed=seed,
        row_tokens=chosen.max_tokens,
        pad_id=pad_id,
        layout=chosen.layout,
        reduction=chosen.reduction,
    )
    loss = sft.sft_loss(chosen.label_smoothing)
    log = fit_language_model(
        model, stream, chosen, loss, resume_folder=folder, text="fine-tuning", progress=progress
    )
    return sft.with_dropout(model, 0.0).eval().to(convert.best_device()), log


def collect_pairs(
    sft_model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    train: pd.DataFrame,
    card_pairs: pd.DataFrame,
    settings: InstructionTuningSettings,
    *,
    seed: int,
    progress: Progress | None = None,
) -> PreferencePairs:
    """On-policy pairs on verifiable training rows, and pairs of the card. Column `row` of `sampled`
    has the index labels of `train`.
    """
    # The index becomes a column, because `spread` resets it.
    labelled = train[train["verifier"].notna()].rename_axis("row").reset_index()
    verifiable = tables.spread(labelled, settings.dpo.sampled_prompts).set_index("row")
    sampled, drawn = sampling.on_policy_pairs(
        sft_model,
        tokenizer,
        verifiable,
        num_generations=settings.dpo.num_generations,
        temperature=settings.dpo.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
        batch_size=settings.answer_batch,
        progress=progress,
    )
    fixed = tables.spread(card_pairs, settings.dpo.constructed_pairs)
    sides = [tables.sides(fixed, name) + sampled[name].tolist() for name in ("chosen", "rejected")]
    pairs, lost = dpo.encode_pairs(
        sides[0],
        sides[1],
        tokenizer,
        max_tokens=settings.dpo.max_tokens,
        max_refused_share=settings.max_refused_share,
    )
    return PreferencePairs(pairs, lost, sampled, drawn, len(verifiable), len(fixed))


def prefer(
    sft_model: MoxinForCausalLM,
    pairs: Sequence[dpo.Pair],
    settings: InstructionTuningSettings,
    *,
    loss_type: dpo.LossType,
    beta: float,
    seed: int,
    pad_id: int,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[MoxinForCausalLM, pd.DataFrame]:
    """A copy of the SFT model trained on the pairs with one DPO loss, and its log. The reference's
    log-probabilities are cached in `folder` under the hash of its weights; while the copy trains,
    the SFT model is in the CPU's memory.
    """
    chosen = settings.dpo
    device = next(sft_model.parameters()).device
    reference = dpo.reference_log_probs(
        sft_model,
        pairs,
        folder,
        batch_tokens=settings.batch_tokens,
        device=device,
        precision=chosen.precision,
        progress=progress,
    )
    stream = dpo.PairStream(
        pairs,
        reference,
        examples_per_step=chosen.examples_per_step,
        epochs=chosen.epochs,
        seed=seed,
        row_tokens=chosen.max_tokens,
        pad_id=pad_id,
        layout=settings.sft.layout,
    )
    model = copy.deepcopy(sft_model)
    sft_model.cpu()  # not needed: the reference's log-probabilities are computed
    loss = dpo.dpo_loss(loss_type, beta, chosen.label_smoothing)
    name = f"{loss_type}, beta {beta:g}"
    log = fit_language_model(
        model, stream, chosen, loss, resume_folder=folder / name, text=name, progress=progress
    )
    sft_model.to(device)
    return model.eval().to(device), log


def prefer_by_each(
    sft_model: MoxinForCausalLM,
    pairs: Sequence[dpo.Pair],
    settings: InstructionTuningSettings,
    losses: Mapping[str, tuple[dpo.LossType, float]],
    **options: Any,
) -> tuple[dict[str, MoxinForCausalLM], dict[str, pd.DataFrame]]:
    """`prefer` with each loss, from the same model: tuned models and logs by name. losses: name to
    DPO loss and beta.
    """
    models, logs = {}, {}
    for name, (loss_type, beta) in losses.items():
        models[name], logs[name] = prefer(
            sft_model, pairs, settings, loss_type=loss_type, beta=beta, **options
        )
    return models, logs


def before_and_after(
    base: MoxinForCausalLM,
    sft_model: MoxinForCausalLM,
    tuned: Mapping[str, MoxinForCausalLM],
    *,
    seed: int,
) -> dict[str, MoxinForCausalLM]:
    """All models that are judged, by name, with one of random weights."""
    untrained = new_model(base.config, seed).eval().to(base.lm_head.weight.device)
    return {"untrained": untrained, "pretrained": base.eval(), "SFT": sft_model, **tuned}


def preference_accuracy(
    models: Mapping[str, MoxinForCausalLM],
    pairs: Sequence[dpo.Pair],
    losses: Mapping[str, tuple[dpo.LossType, float]],
    settings: InstructionTuningSettings,
    interval: Callable[[int, int], Any],
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Share of held-out pairs that each tuned model puts in the right order, relative to the model
    "SFT": one row per loss, columns value, low, high by `interval(hits, pairs)`. Also the
    log-probabilities of each model, float64 [N, 2].
    """
    device = convert.best_device()
    scored = {
        name: dpo.pair_log_probs(model, pairs, batch_tokens=settings.batch_tokens, device=device)
        for name, model in models.items()
    }
    rows = {}
    for name, (loss_type, _) in losses.items():
        hits = preference_hits(scored[name], scored["SFT"], pairs, loss_type)
        rows[name] = interval(int(hits.sum()), len(hits))._asdict()
    return pd.DataFrame(rows).T.rename_axis("model"), scored


def save_log(
    folder: Path,
    sft_log: pd.DataFrame,
    dpo_logs: Mapping[str, pd.DataFrame],
    runs: pd.DataFrame,
    sampled: pd.DataFrame,
    judged: Mapping[str, pd.DataFrame],
) -> None:
    """The artifact `tuning_log`: steps, runs, sampled pairs and answers as parquet."""
    folder.mkdir()
    sft_log.to_parquet(folder / "sft_steps.parquet")
    pd.concat(dpo_logs, names=["loss_name"]).to_parquet(folder / "dpo_steps.parquet")
    runs.to_parquet(folder / "reduction_runs.parquet")
    sampled.to_parquet(folder / "sampled_pairs.parquet")
    pd.concat(judged, names=["model"]).to_parquet(folder / "answers.parquet")


def preference_hits(
    scored: np.ndarray, reference: np.ndarray, pairs: Sequence[dpo.Pair], loss_type: str
) -> np.ndarray:
    """Whether the tuned model raised the chosen answer relative to the rejected one, by the ratio
    that its loss uses, bool [N].

    scored, reference: log-probabilities of `dpo.pair_log_probs`, float64 [N, 2].
    """
    ratios = (scored - reference) / (1 if loss_type == "sigmoid" else dpo.answer_lengths(pairs))
    return ratios[:, 0] > ratios[:, 1]


def start_seeds(
    pretrained: Path,
    encoded: Sequence[Encoded],
    train: pd.DataFrame,
    card_pairs: pd.DataFrame,
    tests: Tests,
    tokenizer: PreTrainedTokenizerFast,
    settings: InstructionTuningSettings,
    losses: Mapping[str, tuple[dpo.LossType, float]],
    *,
    seed: int,
    folder: Path,
) -> side_by_side.Running[int]:
    """Begin `repeat` with the scale's seeds after the first; its results are by seed."""
    shared = {
        "pretrained": pretrained,
        "encoded": encoded,
        "train": train,
        "card_pairs": card_pairs,
        "tests": tests,
        "tokenizer": tokenizer,
        "settings": settings,
        "losses": dict(losses),
    }
    return side_by_side.start_other_seeds(
        repeat, settings.seeds, shared=shared, seed=seed, folder=folder
    )


def repeat(
    pretrained: Path,
    encoded: Sequence[Encoded],
    train: pd.DataFrame,
    card_pairs: pd.DataFrame,
    tests: Tests,
    tokenizer: PreTrainedTokenizerFast,
    settings: InstructionTuningSettings,
    losses: Mapping[str, tuple[dpo.LossType, float]],
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Both trainings with another seed, judged on the same test rows and pairs: `outcomes`. losses:
    name to DPO loss and beta.
    """
    pad_id = tokenizer.pad_token_id
    tuned, _ = fine_tune(
        pretrained,
        encoded,
        settings,
        seed=seed,
        pad_id=pad_id,
        folder=folder / "sft",
        progress=progress,
    )
    collected = collect_pairs(
        tuned, tokenizer, train, card_pairs, settings, seed=seed, progress=progress
    )
    scoring = {"batch_tokens": settings.batch_tokens, "device": next(tuned.parameters()).device}
    before = dpo.pair_log_probs(tuned, tests.pairs, **scoring)
    models, accuracy = {"SFT": tuned}, {}
    for name, (loss_type, beta) in losses.items():
        models[name], _ = prefer(
            tuned,
            collected.pairs,
            settings,
            loss_type=loss_type,
            beta=beta,
            seed=seed,
            pad_id=pad_id,
            folder=folder,
            progress=progress,
        )
        after = dpo.pair_log_probs(models[name], tests.pairs, **scoring)
        accuracy[name] = float(preference_hits(after, before, tests.pairs, loss_type).mean())
    judged = judge_all(models, tokenizer, tests, settings, progress=progress)
    return outcomes(judged, accuracy)


def judge_all(
    models: Mapping[str, MoxinForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    tests: Tests,
    settings: InstructionTuningSettings,
    *,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """`tables.judge` of each model on the test rows."""
    return {
        name: tables.judge(
            model,
            tokenizer,
            tests.rows,
            tests.encoded,
            max_new_tokens=settings.max_new_tokens,
            batch_tokens=settings.batch_tokens,
            batch_size=settings.answer_batch,
            progress=progress,
        )
        for name, model in models.items()
    }


def pipeline_answers(folder: Path, rows: pd.DataFrame, *, max_new_tokens: int) -> pd.DataFrame:
    """Greedy answers of an exported model through transformers' text-generation pipeline on the
    CPU: columns prompt and pipeline, one row per row of `rows`.
    """
    with convert.without_bars():
        ask = pipeline("text-generation", model=str(folder), device="cpu")
    conversations = tables.conversations(rows)
    prompts = [messages[:-1] for messages in conversations]
    replies = [ask(prompt, max_new_tokens=max_new_tokens, do_sample=False) for prompt in prompts]
    return pd.DataFrame(
        {
            "prompt": [prompt[-1]["content"] for prompt in prompts],
            "pipeline": [reply[0]["generated_text"][-1]["content"] for reply in replies],
        }
    )


def outcomes(judged: Mapping[str, pd.DataFrame], accuracy: Mapping[str, float]) -> dict[str, float]:
    """The numbers that are compared between seeds, by name: exact match and tokens per answer of
    each model of `judged` ("SFT" and the preference-tuned ones, in the order of `accuracy`),
    preference accuracy, and the differences that a claim rests on.
    """
    right = {name: frame["right"].dropna().astype(float) for name, frame in judged.items()}
    tokens = {name: float(frame["tokens"].mean()) for name, frame in judged.items()}
    values = {f"exact match: {name}": float(each.mean()) for name, each in right.items()}
    values |= {
        f"exact match: {name} minus SFT": float(right[name].mean() - right["SFT"].mean())
        for name in accuracy
    }
    values |= {f"preference accuracy: {name}": value for name, value in accuracy.items()}
    values |= {f"tokens per answer: {name}": value for name, value in tokens.items()}
    for first, second in combinations(accuracy, 2):
        wins, ties = (right[first] > right[second]).mean(), (right[first] == right[second]).mean()
        values[f"win rate: {first} against {second}"] = float(wins + ties / 2)
        values[f"tokens per answer: {first} minus {second}"] = tokens[first] - tokens[second]
    return values
