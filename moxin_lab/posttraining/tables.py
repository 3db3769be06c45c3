"""Tables of stage 05: the recipe, the data, the tokens that carry loss, the answers of each model.

Guarantees: a judgement belongs to its row even where rows were omitted; shares count only rows with
a verifier (tests/posttraining/test_tables.py).
Out of scope: drawing (figures.py), training (experiments.py).
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from moxin_lab.lab import show
from moxin_lab.lab.progress import Progress
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.posttraining import batches, chat, dpo, sampling, sft

SHOWN = {
    "sft": (
        "epochs",
        "examples_per_step",
        "max_tokens",
        "learning_rate",
        "warmup_ratio",
        "weight_decay",
        "gradient_clip_norm",
        "label_smoothing",
        "dropout",
        "reduction",
        "layout",
        "precision",
    ),
    "dpo": (
        "epochs",
        "examples_per_step",
        "max_tokens",
        "learning_rate",
        "warmup_ratio",
        "loss_type",
        "beta",
        "label_smoothing",
    ),
}


def recipe(settings: Any, full: Any, shown: Mapping[str, Sequence[str]] = SHOWN) -> pd.DataFrame:
    """Two sections of scale files side by side, as text. shown: names of fields by the subsection
    that has them (default: the main ones of `instruction_tuning`).
    """
    rows = [
        (
            f"{part.upper()}: {field.replace('_', ' ')}",
            *(str(getattr(getattr(section, part), field)) for section in (settings, full)),
        )
        for part, fields in shown.items()
        for field in fields
    ]
    return pd.DataFrame(rows, columns=["setting", "this run", "full scale"]).set_index("setting")


def conversations(frame: pd.DataFrame) -> list[list[dict[str, str]]]:
    """Column `messages` as plain lists: parquet gives arrays."""
    return [list(messages) for messages in frame["messages"]]


def omitted_in_words(lost: pd.DataFrame) -> str:
    """What was omitted or shortened, in a sentence: each reason that occurred with its number and
    share, or that none did. lost: as of `chat.encode_all`, one row per reason.
    """
    what, occurred = lost.columns[0], lost[lost.iloc[:, 0] > 0]
    if occurred.empty:
        return f"Omitted or shortened: none of the {what}. Looked for: {'; '.join(lost.index)}."
    reasons = "; ".join(
        f"{reason}: {count:,} ({share:.2%})"
        for reason, count, share in zip(
            occurred.index, occurred.iloc[:, 0], occurred["share"], strict=True
        )
    )
    return f"Omitted or shortened {what}, by reason: {reasons}."


def sides(frame: pd.DataFrame, name: str) -> list[list[dict[str, str]]]:
    """Whole conversations of the column `chosen` or `rejected`: the prompt, then that answer."""
    return [[*prompt, *answer] for prompt, answer in zip(frame["prompt"], frame[name], strict=True)]


def up_to(frame: pd.DataFrame, max_difficulty: int | None) -> pd.DataFrame:
    """Rows up to a difficulty, in the card's order with a new index; all of them for None."""
    return (
        frame if max_difficulty is None else frame[frame["difficulty"] <= max_difficulty]
    ).reset_index(drop=True)


def spread(frame: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """`count` rows at even distances in the frame's order, whatever they contain, with a new index;
    all rows for None or if there are no more than `count`.
    """
    if count is None or count >= len(frame):
        return frame
    return frame.iloc[np.arange(count) * len(frame) // count].reset_index(drop=True)


def tasks(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Numbers of rows by task, and of test rows with a verifier."""
    frame = pd.DataFrame(
        {
            "training rows": train.groupby("task").size(),
            "test rows": test.groupby("task").size(),
            "test rows with a verifier": test.groupby("task")["verifier"].count(),
        }
    )
    return frame.fillna(0).astype(int).sort_values("training rows", ascending=False)


def loss_tokens_html(encoded: chat.Encoded, tokenizer: PreTrainedTokenizerFast) -> str:
    """A conversation token by token: tokens with loss are marked and underlined, borders show where
    tokens end. Tokens that share a character are shown as one box.
    """
    parts: list[str] = []
    pending: list[int] = []  # tokens that end within a character
    for token, loss in zip(encoded.input_ids.tolist(), encoded.answer.tolist(), strict=True):
        pending.append(token)
        text = tokenizer.decode(pending)
        if text.endswith("\ufffd"):
            continue
        pending = []
        shown = escape(text).replace("\n", "\u21b5<br>").replace(" ", "\u00b7")
        style = "border:1px solid #777;padding:0 1px;margin:1px"
        if loss:
            style += ";background:#F0E442;color:#000;font-weight:bold;text-decoration:underline"
            parts.append(f'<mark style="{style}">{shown}</mark>')
        else:
            parts.append(f'<span style="{style}">{shown}</span>')
    return f'<p style="font-family:monospace;line-height:2">{"".join(parts)}</p>'


def show_loss_tokens(encoded: chat.Encoded, tokenizer: PreTrainedTokenizerFast) -> None:
    """Display `loss_tokens_html` in the notebook."""
    show.html_output(loss_tokens_html(encoded, tokenizer), "(a conversation, token by token)")


def layouts(encoded: Sequence[chat.Encoded], row_tokens: int) -> pd.DataFrame:
    """Tokens, rows and padding of the padded and the packed layout: one row each."""
    rows = {
        layout: batches.rows_used(encoded, row_tokens=row_tokens, layout=layout)
        for layout in ("padded", "packed")
    }
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="layout"))


def seeds_in_words(count: int) -> str:
    """`one seed`, or `3 seeds, with its 95 % interval`."""
    return f"{count} seeds, with its 95 % interval" if count > 1 else "one seed"


def deciding(over_seeds: pd.DataFrame, after: str, plain: str, seeds: int) -> str:
    """The three rows that say whether preference optimisation helped, and whether length
    normalisation matters. over_seeds: of `experiments.over_seeds`.
    """
    rows = (
        f"exact match: {after} minus SFT",
        f"win rate: {after} against {plain}",
        f"tokens per answer: {after} minus {plain}",
    )
    words = []
    for what, row in over_seeds.loc[[*rows]].iterrows():
        interval = f" ({row['low']:.3f} to {row['high']:.3f})" if seeds > 1 else ""
        words.append(f"{what}: {row['mean']:.3f}{interval}")
    return "; ".join(words)


def judge(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: pd.DataFrame,
    encoded: Sequence[chat.Encoded],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """A model's answers to test rows, one row each: `text`, `tokens` (of its answer), `ended`,
    `right` (missing without a verifier), and `nats` and `targets` of the reference answer.
    `encoded[i].index` is the position of its row in `rows`.
    """
    chosen = rows.iloc[[sequence.index for sequence in encoded]]
    prompts = [conversation[:-1] for conversation in conversations(chosen)]
    answers = sampling.respond(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    device = model.lm_head.weight.device
    nats, targets = sft.answer_nats(model, encoded, batch_tokens=batch_tokens, device=device)
    right = [
        sampling.is_right(verifier, answer.text) if isinstance(verifier, str) else np.nan
        for verifier, answer in zip(chosen["verifier"], answers, strict=True)
    ]
    frame = pd.DataFrame(answers, index=chosen.index).rename(columns={"num_tokens": "tokens"})
    return frame.assign(right=pd.array(right, dtype="Float64"), nats=nats, targets=targets)


def exact_match(
    judged: Mapping[str, pd.DataFrame], interval: Callable[[int, int], Any]
) -> pd.DataFrame:
    """Share of right answers per model, with `interval(successes, trials)`; columns value, low,
    high, right, rows.
    """
    rows = {}
    for name, frame in judged.items():
        right = frame["right"].dropna()
        estimate = interval(int(right.sum()), len(right))
        rows[name] = {
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "right": int(right.sum()),
            "rows": len(right),
        }
    return pd.DataFrame(rows).T.astype({"right": int, "rows": int}).rename_axis("model")


def answers(judged: Mapping[str, pd.DataFrame], exact: pd.DataFrame) -> pd.DataFrame:
    """Exact match, loss of the reference answer, and length: one row per model.

    judged: of `judge`, by model. exact: of `exact_match`.
    """
    rows = {
        name: {
            "exact match": exact.loc[name, "value"],
            "answer loss, nats per token": frame["nats"].sum() / frame["targets"].sum(),
            "answer length, tokens": frame["tokens"].mean(),
            "ended by itself": frame["ended"].mean(),
        }
        for name, frame in judged.items()
    }
    return pd.DataFrame(rows).T.rename_axis("model")


def contrasts(
    judged: Mapping[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    paired: Callable[..., Any],
    *,
    seed: int,
) -> pd.DataFrame:
    """Difference in exact match of each pair of models with its interval, win rate and ties: one
    row per pair, named `first against second`.

    paired: (values, values, seed=seed) to (value, low, high), such as
    `evaluation.statistics.paired_bootstrap`. The win rate counts half for a tie.
    """
    correct = {name: frame["right"].dropna().astype(float) for name, frame in judged.items()}
    rows = {}
    for first, second in pairs:
        difference, low, high = paired(correct[first], correct[second], seed=seed)
        wins = (correct[first] > correct[second]).mean()
        ties = (correct[first] == correct[second]).mean()
        rows[f"{first} against {second}"] = {
            "difference": difference,
            "low": low,
            "high": high,
            "win rate": wins + ties / 2,
            "ties": ties,
        }
    return pd.DataFrame(rows).T.rename_axis("models")


def contrasts_in_words(table: pd.DataFrame) -> str:
    """Which rows of `contrasts` are a difference, and which are none that was seen."""
    words = []
    for name, row in table.iterrows():
        seen = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "no difference seen"
        words.append(f"{name}: {seen} ({row['difference']:+.3f})")
    return f"{'; '.join(words)}."


def by_task(rows: pd.DataFrame, judged: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Share of right answers by task, one column per model."""
    table = {
        name: frame["right"].astype(float).groupby(rows["task"]).mean()
        for name, frame in judged.items()
    }
    counts = rows.groupby("task")["verifier"].count().rename("rows")
    return pd.concat([counts, pd.DataFrame(table)], axis=1)[lambda frame: frame["rows"] > 0]


def majority(train: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """`judge`'s columns `text` and `right` for the baseline that gives each task's most frequent
    training answer.
    """
    common = sampling.majority_answers(train)
    text = [
        common.get((task, language), "")
        for task, language in zip(rows["task"], rows["language"], strict=True)
    ]
    right = [
        sampling.is_right(verifier, answer) if isinstance(verifier, str) else np.nan
        for verifier, answer in zip(rows["verifier"], text, strict=True)
    ]
    return pd.DataFrame({"text": text, "right": pd.array(right, dtype="Float64")}, index=rows.index)


def preference_example(chosen: int = 3, rejected: int = 12) -> pd.DataFrame:
    """One pair under the two losses that Moxin and plain DPO use: a chosen and a rejected answer of
    so many tokens, each of whose tokens moved by the same 0.1 nats from the reference.
    """
    num_tokens = torch.tensor([[chosen, rejected]])
    ratios = 0.1 * num_tokens * torch.tensor([[1.0, -1.0]])
    losses: dict[str, tuple[dpo.LossType, float]] = {
        "plain DPO": ("sigmoid", 0.1),
        "per token": ("dpo_norm", 5.0),
    }
    rows = {}
    for name, (loss_type, beta) in losses.items():
        used = ratios / num_tokens if loss_type == "dpo_norm" else ratios
        loss = dpo.preference_losses(
            ratios, torch.zeros(1, 2), num_tokens, loss_type=loss_type, beta=beta
        )
        up, down = used[0].tolist()
        rows[name] = {
            "beta": beta,
            "chosen": up,
            "rejected": down,
            "beta x margin": beta * (up - down),
            "loss": loss.item(),
        }
    return pd.DataFrame(rows).T.rename_axis("loss by")


def preference_push(betas: Sequence[float], margins: Sequence[float]) -> pd.DataFrame:
    """How hard plain DPO still pulls a pair apart, by its margin in nats: the gradient of
    `dpo.preference_losses`, as a share of what it is where the order is wrong. One column per beta.
    """
    columns = {}
    for beta in betas:
        log_probs = torch.tensor([[margin, 0.0] for margin in margins], requires_grad=True)
        losses = dpo.preference_losses(
            log_probs,
            torch.zeros(len(margins), 2),
            torch.ones(len(margins), 2),
            loss_type="sigmoid",
            beta=beta,
        )
        (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
        columns[beta] = (-gradient[:, 0] / beta).tolist()
    return pd.DataFrame(columns, index=pd.Index(margins, name="margin"))


def length_rule(train: Sequence[dpo.Pair], test: Sequence[dpo.Pair]) -> tuple[str, int]:
    """A baseline that reads no word: prefer the shorter (or the longer) answer, whichever is right
    more often on training pairs. Returns its name and its hits on test pairs; equal lengths miss.
    """

    def shorter(pairs: Sequence[dpo.Pair]) -> np.ndarray:
        lengths = dpo.answer_lengths(pairs)
        return lengths[:, 0] - lengths[:, 1]

    prefer_shorter = (shorter(train) < 0).sum() >= (shorter(train) > 0).sum()
    difference = shorter(test)
    hits = int((difference < 0).sum() if prefer_shorter else (difference > 0).sum())
    return f"the {'shorter' if prefer_shorter else 'longer'} answer", hits


def above_majority(exact: pd.DataFrame, name: str) -> str:
    """Whether a model's exact match is above that of the majority answer, in a sentence.
    exact: the table of `exact_match`.
    """
    model, baseline = exact.loc[name], exact.loc["majority"]
    if model["low"] > baseline["high"]:
        return f"{name} answers more rows exactly than the majority answer of each task does."
    if model["high"] < baseline["low"]:
        return f"The majority answer of each task beats {name}: a rule that reads no prompt wins."
    return f"{name} is not told apart from the majority answer of each task by these intervals."


def samples(rows: pd.DataFrame, judged: Mapping[str, pd.DataFrame], *, each: int) -> pd.DataFrame:
    """The first `each` test rows of each language, in the card's order: prompt, reference answer,
    and the answer of each model; long texts end with an ellipsis.
    """
    chosen = rows.groupby("language", sort=True).head(each).sort_values("language", kind="stable")
    table = pd.DataFrame(
        {
            "language": chosen["language"],
            "prompt": [
                short(conversation[-2]["content"], 60) for conversation in conversations(chosen)
            ],
            "reference": [
                short(conversation[-1]["content"], 20) for conversation in conversations(chosen)
            ],
            **{
                name: frame.loc[chosen.index, "text"].map(lambda text: short(text, 20))
                for name, frame in judged.items()
            },
        }
    )
    return table.set_index("language")


def short(text: str, limit: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
