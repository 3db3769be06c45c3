"""Stage 07 as calls: its questions, its towers, and the training of every recipe on every seed.

    questions(...)      training and test questions from the cards
    train_towers(...)   both towers from scratch
    run_recipe(...)     one training, from towers and a language model to a VLM and its logs
    run_all(...)        every recipe of the scale on every seed, with its answers

Guarantees: all recipes of one seed are trained on the same questions in the same order; every
recipe starts from the same towers and language model and changes neither (it trains copies).
Out of scope: the training loop (`vlm_training.py`), the model (`vlm.py`), verdicts (`recipes.py`).
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moxin_lab.lab.progress import Progress
from moxin_lab.model import convert
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.scales.sections import VisionSettings
from moxin_lab.training import side_by_side
from moxin_lab.vision import retrieval, scoring, tasks
from moxin_lab.vision.answering import answer
from moxin_lab.vision.data import Concept, render_concepts
from moxin_lab.vision.dino_training import train_dino
from moxin_lab.vision.features import (
    Features,
    compute_features,
    item_features,
    pooled_by_style,
    select_towers,
)
from moxin_lab.vision.prompts import encode_example
from moxin_lab.vision.recipes import RECIPES
from moxin_lab.vision.siglip_training import SiglipPair, train_siglip
from moxin_lab.vision.tasks import Item, caption_examples
from moxin_lab.vision.towers import Towers, build_towers
from moxin_lab.vision.training_data import TrainingData, drawings_by_name
from moxin_lab.vision.vlm import MoxinVLM, Projector
from moxin_lab.vision.vlm_training import caption_losses, train_vlm

# ---- questions and towers


class Questions(NamedTuple):
    """Questions that a VLM is trained on and evaluated on."""

    train: list[Item]
    test: list[Item]


def questions(
    train: Sequence[Concept],
    test: Sequence[Concept],
    charts: Path,
    settings: VisionSettings,
    *,
    seed: int,
) -> Questions:
    """Training and test questions of the scale's tasks. `presence` is tested on training concepts
    in new scenes, charts on new tables and new styles.

    charts: folder of the card. settings: tasks, train_items, test_items, towers.image_size.
    """
    edge = settings.towers.image_size
    train_items: list[Item] = []
    test_items: list[Item] = []
    for task in settings.tasks:
        if task == "chart":
            of_cards = tasks.chart_items(charts, "train", edge)
            train_items += tasks.spread(of_cards, settings.train_items)
            for split in ("test_tables", "test_styles"):
                of_cards = tasks.chart_items(charts, split, edge)
                test_items += tasks.spread(of_cards, settings.test_items // 2)
            continue
        train_items += tasks.make_items(
            task, settings.train_items, train, edge=edge, seed=seed, split="train"
        )
        concepts = train if task == "presence" else test
        test_items += tasks.make_items(
            task, settings.test_items, concepts, edge=edge, seed=seed, split="test"
        )
    return Questions(train_items, test_items)


def tower_captions(
    concept: Concept,
    languages: Sequence[str],
    *,
    seed: int,
    nameless: bool = False,
    captions_per_language: int = 6,
) -> list[str]:
    """Captions of one concept for training the towers: its label and some of its tags, from none to
    all, in random order.

    nameless: every second caption omits the label. A label belongs to one concept, so a tower that
    always reads it can memorise names; tags are shared between concepts, and an unseen concept has
    nothing else in common with the training set. A caption without tags keeps its label.
    """
    rng = np.random.default_rng([seed, *concept.id.encode()])
    captions = []
    for language in languages:
        label, tags = concept.names[language]
        tags = tuple(tag for tag in tags if tag != label)
        for index in range(captions_per_language):
            order = rng.permutation(len(tags))[: rng.integers(0, len(tags) + 1)]
            chosen = [tags[i] for i in order]
            omit_label = nameless and chosen and index % 2
            captions.append(", ".join(chosen if omit_label else [label, *chosen]))
    return captions


def train_towers(
    towers: Towers,
    concepts: Sequence[Concept],
    tokenizer: PreTrainedTokenizerBase,
    settings: VisionSettings,
    *,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
) -> tuple[SiglipPair, dict[str, pd.DataFrame]]:
    """Train both towers in place on the drawings of one style. Returns the SigLIP tower with its
    text encoder, and the logs `SigLIP` and `DINO`.
    """
    # [n, 64, 64, 4]; transparent, so that each view has its own background
    drawings = np.stack([concept.drawings["google"] for concept in concepts])
    captions = [
        tower_captions(
            concept,
            settings.caption_languages,
            seed=seed,
            nameless=settings.siglip.nameless_captions,
        )
        for concept in concepts
    ]
    common: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    pair, siglip_log = train_siglip(
        towers,
        drawings,
        captions,
        tokenizer,
        settings=settings.siglip,
        folder=folder / "siglip",
        **common,
    )
    dino_log = train_dino(
        towers, drawings, settings=settings.dino, folder=folder / "dino", **common
    )
    return pair, {"SigLIP": siglip_log, "DINO": dino_log}


def text_recall(
    pair: SiglipPair | None,
    pictures: NDArray[np.float32],
    concepts: Sequence[Concept],
    settings: VisionSettings,
    interval: retrieval.Interval,
    *,
    device: str,
) -> pd.DataFrame:
    """Recall between the concepts' pictures and captions in the languages of the training
    (`retrieval.recall_table`); empty without `pair`, as published towers have no text encoder here.

    pictures: SigLIP's vector of each concept, [n, C].
    """
    if pair is None:
        return pd.DataFrame()
    pair = pair.to(device)
    texts = {
        language: pair.embed_texts([one.caption(language, tags=12) for one in concepts])
        for language in settings.caption_languages
    }
    return retrieval.recall_table(pictures, texts, interval)


def style_features(
    by_tower: Mapping[str, dict[str, NDArray[np.float32]]],
    views: Mapping[str, Mapping[str, Tensor]],
    concepts: Sequence[Concept],
    settings: VisionSettings,
    *,
    seed: int,
    device: str,
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Vectors of each concept by kind of features and style: both towers, raw pixels, and the
    towers untrained if this stage has trained them.

    views: of `features.prepare_styles`. by_tower: of `features.pooled_by_style` on them.
    """
    edge = settings.towers.image_size
    names = {"siglip": "SigLIP", "dino": "DINO"}
    kinds = {names[name]: styles for name, styles in by_tower.items()}
    kinds["pixels, 16 x 16"] = {
        style: scoring.pixel_features(render_concepts(concepts, style, edge)) for style in views
    }
    if not settings.checkpoints:
        fresh = build_towers(settings.towers, seed=seed).to(device)
        for name, styles in pooled_by_style(fresh, views).items():
            kinds[f"{names[name]}, untrained"] = styles
    return kinds


# ---- one recipe


class TrainedRecipe(NamedTuple):
    """A recipe's model and logs."""

    model: MoxinVLM
    logs: dict[str, pd.DataFrame]
    aligned: Projector | None
    """The projector after alignment, which fits the language model as it was before fine-tuning."""


def load_backbones(folders: Mapping[str, Path], *, device: str) -> dict[str, MoxinForCausalLM]:
    """The language models that recipes start from, by name."""
    # Rows have about a hundred tokens: compiling our own kernels would take longer than all of
    # PyTorch's attention.
    return {
        name: convert.from_pretrained(folder, device=device, attention_backend="sdpa")
        for name, folder in folders.items()
    }


def run_recipe(
    name: str,
    towers: Towers,
    backbones: Mapping[str, MoxinForCausalLM],
    data: TrainingData,
    features: Features,
    tokenizer: PreTrainedTokenizerBase,
    settings: VisionSettings,
    *,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
) -> TrainedRecipe:
    """Train one recipe of `RECIPES` on copies of the towers and the language model.

    features: of the images of `data`, where `data.has_features`; of both towers. folder: for resume
    points. Raises KeyError for an unknown recipe or backbone.
    """
    recipe = RECIPES[name]
    used, features = select_towers(towers, recipe.which, features)
    used = copy.deepcopy(used) if recipe.tuned_towers else used
    backbone = backbones[recipe.backbone or settings.backbone]
    model = MoxinVLM(copy.deepcopy(backbone), used.to(device), seed=seed).to(device)
    if settings.projector_start == "standardised":
        _standardise(model, data, features)
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "seed": seed,
        "features": features if data.has_features and not recipe.tuned_towers else None,
        "progress": progress,
    }
    logs, aligned = {}, None
    if recipe.align:
        logs["align"] = train_vlm(
            model,
            data.captions,
            data.images,
            stage="align",
            settings=settings.align,
            folder=folder / "align",
            **common,
        )
        aligned = copy.deepcopy(model.to(device).projector)
    finetune = settings.finetune
    if recipe.epochs is not None:
        finetune = finetune.model_copy(update={"epochs": recipe.epochs})
    logs["finetune"] = train_vlm(
        model,
        data.instructions,
        data.images,
        stage="full-finetune" if recipe.tuned_towers else "finetune",
        settings=finetune,
        folder=folder / "finetune",
        **common,
    )
    return TrainedRecipe(model.to(device).eval(), logs, aligned)


def _standardise(model: MoxinVLM, data: TrainingData, features: Features) -> None:
    """Rescale a fresh projector to the features of about 512 instructions and the size of token
    embeddings.
    """
    step = max(1, len(data.instructions) // 512)
    sample = [features[example.image or ""] for example in data.instructions[::step]]
    embeddings = model.decoder.model.embed_tokens.weight.detach()
    model.projector.standardise(torch.stack(sample), float(embeddings.square().mean().sqrt()))


# ---- all recipes


def recipe_features(
    name: str,
    trained: TrainedRecipe,
    towers: Towers,
    features: Features,
    items: Sequence[Item],
    *,
    device: str,
) -> Tensor:
    """`[n, patches, channels]` of the items' pictures by the towers of a trained recipe. Tuned
    towers compute them again.
    """
    recipe = RECIPES[name]
    if recipe.tuned_towers:
        pictures = {item.example().image or "": item.picture for item in items}
        tuned = compute_features(trained.model.towers, pictures, device=device)
        return item_features(tuned, items)
    return item_features(select_towers(towers, recipe.which, features)[1], items)


class RecipeRuns(NamedTuple):
    """All trainings of a stage; lists have one entry per seed."""

    trained: dict[str, list[TrainedRecipe]]
    """Only the recipes named in `keep`."""
    answers: dict[str, list[list[str]]]
    table: pd.DataFrame
    """One row per training: arm, seed, accuracy over all questions, final training loss."""


def run_all(
    towers: Towers,
    backbones: Mapping[str, MoxinForCausalLM],
    data: TrainingData,
    test: Sequence[Item],
    features: Features,
    tokenizer: PreTrainedTokenizerBase,
    settings: VisionSettings,
    *,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
    keep: Sequence[str] = ("align", "no-align"),
) -> RecipeRuns:
    """Train every recipe of `settings.arms` on `data` with the seeds from `seed` to
    `seed + settings.seeds - 1`, and answer the questions of `test`; on GPUs several at the same
    time (`side_by_side`).

    features: of the images of `data` (see `run_recipe`) and of the pictures of `test`. keep: the
    recipes whose models are kept in memory.
    """
    calls = {
        f"{arm}, seed {run_seed}": {"arm": arm, "seed": run_seed, "keep": arm in keep}
        for arm in settings.arms
        for run_seed in range(seed, seed + settings.seeds)
    }
    shared = {
        "towers": towers,
        "backbones": backbones,
        "data": data,
        "test": test,
        "features": features,
        "tokenizer": tokenizer,
        "settings": settings,
        "folder": folder,
        "device": device,
    }
    done = side_by_side.start(train_and_answer, calls, shared=shared).results(progress)
    trained: dict[str, list[TrainedRecipe]] = {arm: [] for arm in settings.arms if arm in keep}
    answers: dict[str, list[list[str]]] = {arm: [] for arm in settings.arms}
    for run, texts, row in done.values():
        answers[row["arm"]].append(texts)
        if run is not None:
            trained[row["arm"]].append(run)
    return RecipeRuns(trained, answers, pd.DataFrame([row for _, _, row in done.values()]))


def train_and_answer(
    towers: Towers,
    backbones: Mapping[str, MoxinForCausalLM],
    data: TrainingData,
    test: Sequence[Item],
    features: Features,
    tokenizer: PreTrainedTokenizerBase,
    settings: VisionSettings,
    *,
    arm: str,
    seed: int,
    keep: bool,
    folder: Path,
    device: str,
    progress: Progress | None = None,
) -> tuple[TrainedRecipe | None, list[str], dict[str, Any]]:
    """One training of `run_all`: its model and logs if they are to be kept, its answers to `test`,
    and its row of the table.
    """
    run = run_recipe(
        arm,
        towers,
        backbones,
        data,
        features,
        tokenizer,
        settings,
        seed=seed,
        folder=folder / arm / str(seed),
        device=device,
        progress=progress,
    )
    shown = recipe_features(arm, run, towers, features, test, device=device)
    texts = answer(run.model, tokenizer, test, shown, settings, progress=progress)
    accuracy = float(scoring.judge(test, texts).mean())
    loss = float(run.logs["finetune"]["loss"].tail(10).mean())
    row = {"arm": arm, "seed": seed, "accuracy": accuracy, "loss": loss}
    return run if keep else None, texts, row


def first_logs(done: RecipeRuns) -> dict[str, pd.DataFrame]:
    """Logs of the first seed of each kept recipe, by recipe and training."""
    return {
        f"{arm}, {name}": log
        for arm, seeds in done.trained.items()
        for name, log in seeds[0].logs.items()
    }


def caption_comparison(
    run: TrainedRecipe,
    towers: Towers,
    backbone: MoxinForCausalLM,
    concepts: Sequence[Concept],
    features: Features,
    tokenizer: PreTrainedTokenizerBase,
    settings: VisionSettings,
    *,
    device: str,
    others: int,
) -> dict[str, NDArray[np.float64]]:
    """Losses of unseen captions with their own picture, with those of `others` other captions, and
    with none (`vlm_training.caption_losses`), by the model after alignment alone.

    features: of the concepts' drawings in Google's style; those in Twitter's are computed here.
    """
    examples = caption_examples(concepts, settings.align_languages)
    encoded = [
        encode_example(tokenizer, example, stage="align", max_tokens=settings.align.max_tokens)
        for example in examples
    ]
    model = captioner(run, towers, backbone, device=device)
    drawings = drawings_by_name(concepts, "twitter", settings.towers.image_size)
    twitter = compute_features(towers, drawings, device=device)
    styles = [  # each [N, patches, channels]
        torch.stack([style[example.image or ""] for example in examples])
        for style in (features, twitter)
    ]
    return caption_losses(model, encoded, styles, others=others)


def captioner(
    run: TrainedRecipe, towers: Towers, backbone: MoxinForCausalLM, *, device: str
) -> MoxinVLM:
    """The language model before fine-tuning, with the projector as alignment left it. Raises
    ValueError for a recipe without alignment.
    """
    if run.aligned is None:
        raise ValueError("this recipe has no alignment, so there is no projector to caption with")
    return MoxinVLM(backbone, towers.to(device), run.aligned.to(device)).eval()
