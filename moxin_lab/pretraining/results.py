"""Notebook 04 around the training: plan, inputs, artifacts, and results as tables and words.

Guarantees: greedy continuations of the first held-out document of each language, none selected.
Out of scope: scoring (`evaluation.heldout`), verdicts.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moxin_lab.lab import curated, seeds
from moxin_lab.lab.progress import Progress
from moxin_lab.model import convert, experiments, generate, hf_config, plain_text
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.pretraining import parallel, trainer
from moxin_lab.pretraining.packing import TrainingStream
from moxin_lab.pretraining.parallel import ParallelSettings
from moxin_lab.pretraining.pools import Tokens, in_mixtures, tokenize_pools
from moxin_lab.scales.sections import PretrainingSettings
from moxin_lab.training import schedules, side_by_side

STATED_OPTIMIZER = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "weight_decay": 0.1,
    "final_learning_rate_ratio": 0.1,
}
"""AdamW and the end of the cosine as the technical report states them (v6, section 3.4)."""


LAST = "after phase 3"
"""Name of the trained model in tables."""


class PhaseSpan(NamedTuple):
    """A phase as the plan has it, before any document is read."""

    name: str
    first_step: int
    steps: int
    sequence_length: int


def spans(settings: PretrainingSettings) -> list[PhaseSpan]:
    """The phases of the scale file, one after the other."""
    found: list[PhaseSpan] = []
    for phase in settings.phases:
        start = found[-1].first_step + found[-1].steps if found else 0
        found.append(PhaseSpan(phase.name, start, phase.steps, phase.sequence_length))
    return found


def planned_rates(settings: PretrainingSettings) -> list[float]:
    """The learning rate of every step of all phases."""
    steps = sum(phase.steps for phase in settings.phases)
    return list(schedules.pretraining_learning_rates(settings, steps))


def read_documents(
    folder: Path, settings: PretrainingSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training documents of stage 01, and the held-out ones of the sources and languages that the
    mixtures name: of a language that it never reads, a model's bits per byte say nothing about its
    training. Both are read as a whole, so that a damaged part is found before the first step.
    """
    train, heldout = (curated.read(folder, side).to_pandas() for side in ("train", "heldout"))
    return train, in_mixtures(heldout, settings.phases)


def not_drawn_in_words(train: pd.DataFrame, pools: Mapping[str, Tokens]) -> str:
    """How much of the training text no mixture draws from. train: columns id, language, num_bytes;
    pools: those that were tokenised.
    """
    drawn = {name for tokens in pools.values() for name in tokens.names}
    rest = train[~train["id"].isin(drawn)]
    if rest.empty:
        return "The mixtures draw from every document of stage 01."
    share = rest["num_bytes"].sum() / train["num_bytes"].sum()
    return (
        f"No mixture names the other {len(rest):,} documents of stage 01, {share * 100:.0f} % of "
        f"its bytes, in {rest['language'].nunique()} languages: they are neither read nor scored."
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of stage 02."""
    return AutoTokenizer.from_pretrained(folder)


def tokenize(
    train: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainingSettings,
    progress: Progress,
) -> dict[str, Tokens]:
    """The pools of the scale's phases."""
    return tokenize_pools(train, tokenizer, settings.phases, progress=progress)


def new_model(
    architecture: Path, seed: int, layout: ParallelSettings | None = None
) -> MoxinForCausalLM:
    """A model of stage 03's configuration with random weights; with a layout one on the meta
    device, whose weights are drawn as it is sharded.
    """
    config = hf_config.read(architecture)
    if layout is not None:
        return experiments.without_storage(config)
    return experiments.new_model(config, seed)


def start_seeds(
    architecture: Path,
    pools: Mapping[str, Tokens],
    texts: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainingSettings,
    *,
    compare: Callable[..., pd.DataFrame],
    seed: int,
    folder: Path,
) -> side_by_side.Running[int]:
    """Begin `train_again` with the scale's seeds after the first, on the GPUs that the first does
    not use; its results are by seed. compare: `evaluation.heldout.compare`.
    """
    shared = {
        "architecture": architecture,
        "pools": pools,
        "texts": texts,
        "tokenizer": tokenizer,
        "settings": settings,
        "compare": compare,
    }
    return side_by_side.start_other_seeds(
        train_again, settings.seeds, shared=shared, own_device=True, seed=seed, folder=folder
    )


def train_again(
    architecture: Path,
    pools: Mapping[str, Tokens],
    texts: pd.DataFrame,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainingSettings,
    *,
    compare: Callable[..., pd.DataFrame],
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The whole training with another seed, of weights and of data: what `compare` says of its last
    weights on `texts`. folder: for resume points; the model is not kept.
    """
    stream = TrainingStream(
        pools, settings.phases, tokens_per_step=settings.tokens_per_step, seed=seed
    )
    model = new_model(architecture, seed)
    trainer.fit(
        model,
        stream,
        settings,
        resume_folder=folder,
        save_phase=lambda index: None,
        progress=progress,
    )
    device, context = convert.best_device(), settings.phases[-1].sequence_length
    final = {LAST: model.to(device)}
    return compare(final, texts, tokenizer, context=context, seed=seed, device=device)


def saver(
    model: MoxinForCausalLM, tokenizer: Path, work: Path, layout: ParallelSettings | None = None
) -> Callable[[int], None]:
    """What `trainer.fit` calls at the end of phase 0, 1, 2: the model with its tokenizer goes to
    the folder `phase_1`, 2, 3 of `work`; with a layout its shards, which `joined` makes such a
    folder of.
    """

    def save(index: int) -> None:
        folder = work / f"phase_{index + 1}"
        if layout is not None:
            parallel.save_distributed(model, folder.with_suffix(".shards"))
            return
        convert.save_pretrained(model, folder)
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)

    return save


def joined(
    model: MoxinForCausalLM, tokenizer: Path, work: Path, layout: ParallelSettings | None
) -> MoxinForCausalLM:
    """The trained model, whole, after the shards of each phase have become a folder as `saver`
    writes it. Without a layout it is the model that is given.
    """
    if layout is None:
        return model
    dtype = next(model.parameters()).dtype
    for phase in (1, 2, 3):
        folder = work / f"phase_{phase}"
        shards = folder.with_suffix(".shards")
        if shards.is_dir():
            parallel.to_pretrained(shards, model.config, folder, dtype=dtype)
            shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
            shutil.rmtree(shards)
    return convert.from_pretrained(work / "phase_3")


def load_phases(work: Path) -> dict[str, MoxinForCausalLM]:
    """The checkpoints of the three phases, read from disk, on the device."""
    device = convert.best_device()
    return {
        f"after phase {phase}": convert.from_pretrained(work / f"phase_{phase}", device=device)
        for phase in (1, 2, 3)
    }


def tokens_read(stream: TrainingStream) -> list[Any]:
    """Every document of every pool as far as the training reads it."""
    return [document for name in stream.consumed for document in stream.tokens_read(name)]


def phase_ends(log: pd.DataFrame) -> pd.Series:
    """Mean loss of the last 20 steps of each phase, counted from 1."""
    ends = log.groupby("phase")["loss"].apply(lambda part: part.tail(20).mean())
    return ends.rename(index=lambda phase: phase + 1)


def losses_in_words(log: pd.DataFrame) -> str:
    """The first step's loss and that at the end of each phase, in a sentence."""
    ends = ", ".join(f"{value:.2f}" for value in phase_ends(log))
    return (
        f"From {log['loss'].iloc[0]:.2f} nats per token to {ends} at the ends of the phases (means "
        "of 20 steps)."
    )


def training_sentence(
    model: MoxinForCausalLM, log: pd.DataFrame, settings: PretrainingSettings, seconds: float
) -> str:
    """Parameters, tokens, speed and losses of a training."""
    parameters = sum(p.numel() for p in model.parameters())
    tokens = len(log) * settings.tokens_per_step
    ends = ", ".join(
        f"{value:.2f} at the end of phase {phase}" for phase, value in phase_ends(log).items()
    )
    return (
        f"{parameters:,} parameters read {tokens:,} tokens in {seconds:.0f} s on the machine named "
        f"below: {tokens / seconds:,.0f} tokens per second. The loss falls from "
        f"{log['loss'].iloc[0]:.2f} nats per token to {ends}."
    )


def against_ngrams(by_language: pd.DataFrame) -> str:
    """Where the model after phase 3 stands beside the n-gram models. by_language: of
    `scores_by_language`.
    """
    final = by_language[LAST]
    below = by_language.index[final < by_language["unigram"]]
    trigram, fivegram = (gaps_in_words(by_language, LAST, name) for name in ("trigram", "5-gram"))
    return (
        f"After phase 3 the model is below the unigram in {len(below)} of {len(by_language)} "
        f"languages ({', '.join(below) or 'none'}). Compared with the trigram on the same text, a "
        f"table of counts that reads two tokens back, it is {trigram} (above is worse); with the "
        f"5-gram, which reads four, {fivegram}."
    )


def keep(
    work: Path,
    log: pd.DataFrame,
    order: pd.DataFrame,
    pretrained: Path,
    phase_checkpoints: Path,
    training_log: Path,
) -> None:
    """The artifacts of the stage, from the phases' folders, the log and the ledger."""
    shutil.copytree(work / "phase_3", pretrained)
    for phase in (1, 2):
        shutil.copytree(work / f"phase_{phase}", phase_checkpoints / f"phase_{phase}")
    training_log.mkdir()
    log.to_parquet(training_log / "steps.parquet")
    order.to_json(training_log / "order.json", orient="records", indent=1)


def pool_use(pools: Mapping[str, Tokens], tokens_read: Mapping[str, int]) -> pd.DataFrame:
    """Documents and tokens of each pool, and how many of the tokens a training reads: one row per
    pool.
    """
    table = pd.DataFrame(
        {
            "documents": {name: len(tokens) for name, tokens in pools.items()},
            "tokens in the pool": {name: int(pool.offsets[-1]) for name, pool in pools.items()},
            "tokens this run reads": tokens_read,
        }
    )
    table["share read"] = table["tokens this run reads"] / table["tokens in the pool"]
    return table


def scores_by_language(scores: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte from `heldout.compare`: one row per language, one column per model, models in
    the order of the scores.
    """
    table = scores.pivot(index="group", columns="model", values="bits_per_byte")
    return table[list(dict.fromkeys(scores["model"]))].rename_axis(index="language")


def over_seeds(by_seed: Mapping[int, pd.DataFrame], interval: Callable[[Any], Any]) -> pd.DataFrame:
    """Bits per byte after the last phase over trainings: one row per language; columns `mean`,
    `low`, `high` by `interval(values)` (no interval for one seed), and one per seed.

    by_seed: tables of `heldout.compare`.
    """
    finals = {
        seed: table[table["model"] == LAST].set_index("group")["bits_per_byte"]
        for seed, table in by_seed.items()
    }
    table = seeds.over_seeds(finals, interval).rename_axis("language")
    return table.drop(columns=["low", "high"]) if len(finals) == 1 else table


def seeds_in_words(table: pd.DataFrame, by_language: pd.DataFrame, baseline: str) -> str:
    """How many trainings there are, how far apart they end, and in which languages every one of
    them is below a baseline. table: of `over_seeds`; by_language: of `scores_by_language`.
    """
    each = table.filter(like="seed ")
    if each.shape[1] == 1:
        return "One training: how far another seed would end from it is not measured here."
    apart = (each.max(axis=1) - each.min(axis=1)).max()
    below = table.index[each.max(axis=1) < by_language.loc[table.index, baseline]]
    return (
        f"{each.shape[1]} trainings end at most {apart:.3f} bits per byte apart in any language. "
        f"All of them are below the {baseline} in {len(below)} of {len(table)} "
        f"({', '.join(below) or 'none'})."
    )


def gaps_in_words(table: pd.DataFrame, model: str, baseline: str) -> str:
    """How far the bits per byte of a model are above or below a baseline's, by language, such as
    `12 % above in en, 3 % below in zh`. table: as `scores_by_language` returns it.
    """
    gaps = (table[model] / table[baseline] - 1) * 100
    return ", ".join(
        f"{abs(gap):.0f} % {'above' if gap > 0 else 'below'} in {language}"
        for language, gap in gaps.items()
    )


def continuations(
    model: MoxinForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: pd.DataFrame,
    *,
    prompt_tokens: int = 24,
    new_tokens: int = 24,
) -> pd.DataFrame:
    """Greedy continuation of the first text of each language: one row per language.

    texts: columns language, text. The model must be on the CPU.
    """
    rows = {}
    for language, part in texts.groupby("language"):
        text = part["text"].iloc[0]
        prompt = plain_text.encode(tokenizer, text, add_special_tokens=True)
        prompt = prompt[:prompt_tokens]
        # [1, prompt] -> [1, prompt + new]
        ids = generate.generate(model, torch.tensor([prompt]), max_new_tokens=new_tokens)[0]
        rows[language] = {
            "prompt": tokenizer.decode(prompt[1:]),  # without bos
            "continuation": tokenizer.decode(ids[len(prompt) :].tolist()),
        }
    return pd.DataFrame(rows).T.rename_axis("language")


def learning_rate_difference(log: pd.DataFrame, rates: Sequence[float]) -> float:
    """Largest difference between the learning rates that were used and those of the schedule, as a
    share of the peak. log: as `trainer.fit` returns it. rates: one per step.
    """
    return float((log["learning_rate"] - pd.Series(rates)).abs().max() / max(rates))


def has_stated_optimizer(settings: PretrainingSettings) -> bool:
    """Whether the section has every value of STATED_OPTIMIZER."""
    return all(getattr(settings, field) == value for field, value in STATED_OPTIMIZER.items())
