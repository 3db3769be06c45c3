"""Stage 07's work as calls: the questions of a run, what each recipe of the comparison is, and its
scores on them.

    items(...)          training and test questions from the cards
    RECIPES             name -> how it differs from Moxin's single stage
    run_recipe(...)     one training, from towers and a language model to a VLM and its logs
    answer(...)         a VLM's answers to questions, with their pictures, with none, or with those of other questions

Guarantees: all recipes of one seed see the same questions in the same order; every recipe starts
from the same towers and the same language model, which no recipe changes (each works on copies).
Does not: train or run a model itself (`vlm_training.py`, `vlm.py`), or decide a claim.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moxin_lab.lab.progress import Progress
from moxin_lab.model import convert
from moxin_lab.model.decoder import MoxinForCausalLM
from moxin_lab.training.fit import autocast
from moxin_lab.vision import scoring, tasks
from moxin_lab.vision.data import Concept, Pixels
from moxin_lab.vision.images import prepare_images
from moxin_lab.vision.prompts import encode_prompt, tokens
from moxin_lab.vision.settings import TowerSettings
from moxin_lab.vision.tasks import Item
from moxin_lab.vision.tower_training import SiglipPair, train_dino, train_siglip
from moxin_lab.vision.towers import Towers, settings_dict
from moxin_lab.vision.training_data import Material
from moxin_lab.vision.vlm import MoxinVLM, Projector, pad_examples
from moxin_lab.vision.vlm_training import train_vlm


class Recipe(NamedTuple):
    """How a training differs from Moxin's: both towers, frozen, one stage, the scale's epochs and
    language model.
    """

    claim: str | None
    """The claim that the comparison with `no-align` decides."""
    align: bool = False
    which: tuple[str, ...] = ("dino", "siglip")
    tuned_towers: bool = False
    epochs: int | None = None
    backbone: str | None = None
    """A language model of its own; None: the scale's."""


RECIPES: dict[str, Recipe] = {
    "no-align": Recipe(None),
    "align": Recipe("vlm.single-stage", align=True),
    "siglip-only": Recipe("vlm.fused-towers", which=("siglip",)),
    "dino-only": Recipe("vlm.fused-towers", which=("dino",)),
    "tuned-towers": Recipe("vlm.frozen-towers", tuned_towers=True),
    "one-epoch": Recipe("vlm.two-epochs", epochs=1),
    "three-epochs": Recipe("vlm.two-epochs", epochs=3),
    "instruct": Recipe("vlm.base-backbone", backbone="instruct"),
}


class Questions(NamedTuple):
    """What a VLM is trained on and tested with."""

    train: list[Item]
    test: list[Item]


def questions(
    train: Sequence[Concept], test: Sequence[Concept], charts: Path, settings: Any, *, seed: int
) -> Questions:
    """Training and test questions of every task: `presence` of known concepts in new scenes, charts
    of new tables and styles.

    settings: train_items, test_items, towers.image_size.
    """
    edge = settings.towers.image_size
    train_items: list[Item] = []
    test_items: list[Item] = []
    for task in tasks.TASKS:
        train_items += tasks.make(
            task, settings.train_items, train, edge=edge, seed=seed, split="train"
        )
        asked = train if task == "presence" else test
        test_items += tasks.make(
            task, settings.test_items, asked, edge=edge, seed=seed, split="test"
        )
    train_items += tasks.spread(tasks.chart_items(charts, "train", edge), settings.train_items)
    for split in ("test_tables", "test_styles"):
        test_items += tasks.spread(tasks.chart_items(charts, split, edge), settings.test_items // 2)
    return Questions(train_items, test_items)


def captions(
    concept: Concept, languages: Sequence[str], *, seed: int, nameless: bool = False, each: int = 6
) -> list[str]:
    """What the towers are told of a concept: its label with none to all of its tags in any order,
    `each` a language.

    nameless: every second one leaves the label out. It is one concept's own, so a tower that always
    hears it can learn names by heart; tags are shared, and what is shared is all that an unseen
    concept has. Without tags the label stands alone.
    """
    rng = np.random.default_rng([seed, *concept.id.encode()])
    texts = []
    for language in languages:
        label, tags = concept.names[language]
        tags = tuple(tag for tag in tags if tag != label)
        for number in range(each):
            kept = [
                tags[place]
                for place in rng.permutation(len(tags))[: rng.integers(0, len(tags) + 1)]
            ]
            texts.append(", ".join(kept if nameless and kept and number % 2 else [label, *kept]))
    return texts


def train_towers(
    towers: Towers,
    concepts: Sequence[Concept],
    tokenizer: Any,
    settings: Any,
    *,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
) -> tuple[SiglipPair, dict[str, pd.DataFrame]]:
    """Both towers, in place, on one style of drawing; SigLIP's with the text encoder beside it, and
    the logs by name.
    """
    drawings = np.stack(
        [concept.drawings["google"] for concept in concepts]
    )  # transparent: each view has its own background
    nameless = settings.siglip.nameless_captions
    texts = [
        captions(one, settings.caption_languages, seed=seed, nameless=nameless) for one in concepts
    ]
    common: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}
    pair, log = train_siglip(
        towers,
        drawings,
        texts,
        tokenizer,
        settings=settings.siglip,
        folder=folder / "siglip",
        **common,
    )
    return pair, {
        "SigLIP": log,
        "DINO": train_dino(
            towers, drawings, settings=settings.dino, folder=folder / "dino", **common
        ),
    }


class Seen(NamedTuple):
    """What frozen towers make of pictures, by name."""

    features: dict[str, Tensor]
    """Picture to `[patches, channels]`, where the towers ran."""

    def of(self, items: Sequence[Item]) -> Tensor:
        """`[n, patches, channels]` of the pictures of items."""
        return torch.stack([self.features[item.example().image or ""] for item in items])


def look(
    towers: Towers, pictures: Mapping[str, Pixels], *, device: str, batch_images: int = 256
) -> Seen:
    """Every picture through the frozen towers, once."""
    names, found = list(pictures), []
    towers.to(device).eval()
    with torch.no_grad():
        for start in range(0, len(names), batch_images):
            part = prepare_images(
                [pictures[name] for name in names[start : start + batch_images]], towers.settings
            )
            found.append(
                towers.features({name: pixels.to(device) for name, pixels in part.items()})
            )
    return Seen(dict(zip(names, torch.cat(found), strict=True)))


def only(towers: Towers, which: tuple[str, ...], seen: Seen) -> tuple[Towers, Seen]:
    """Some of the towers, and what they alone see: the features of fused towers are joined by
    channel, in order.
    """
    if which == towers.names:
        return towers, seen
    settings = TowerSettings(**{**settings_dict(towers.settings), "which": which})
    widths = [towers.tower(name).embed_dim for name in towers.names]
    places = [place for place, name in enumerate(towers.names) if name in which]
    parted = {key: values.split(widths, dim=1) for key, values in seen.features.items()}
    features = {
        key: parts[places[0]]
        if len(places) == 1
        else torch.cat([parts[place] for place in places], dim=1)
        for key, parts in parted.items()
    }
    return Towers(settings, {name: towers.tower(name) for name in which}), Seen(features)


class Trained(NamedTuple):
    """A recipe's model and logs; `aligned` is the projector after alignment, with which the
    untouched decoder captions.
    """

    model: MoxinVLM
    logs: dict[str, pd.DataFrame]
    aligned: Projector | None


def backbones_needed(settings: Any) -> list[str]:
    """Names of the language models that recipes of `settings.arms` start from, each once. KeyError
    for an unknown recipe.
    """
    return list(dict.fromkeys(RECIPES[arm].backbone or settings.backbone for arm in settings.arms))


def load_backbones(folders: Mapping[str, Path], *, device: str) -> dict[str, MoxinForCausalLM]:
    """The language models that recipes start from, by name, each read once."""
    # Rows here have about a hundred tokens: starting a kernel of ours would take longer than
    # PyTorch's attention does.
    return {
        name: convert.from_pretrained(folder, device=device, attention_backend="sdpa")
        for name, folder in folders.items()
    }


def run_recipe(
    name: str,
    towers: Towers,
    backbones: Mapping[str, MoxinForCausalLM],
    made: Material,
    seen: Seen,
    tokenizer: Any,
    settings: Any,
    *,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
) -> Trained:
    """Train one recipe of `RECIPES` on copies of everything; `folder` is for its resume points.

    made: what is learned from; seen: what its towers see, where it was looked at. Raises KeyError
    for an unknown recipe or backbone.
    """
    recipe = RECIPES[name]
    used, features = only(towers, recipe.which, seen)
    used = copy.deepcopy(used) if recipe.tuned_towers else used
    backbone = backbones[recipe.backbone or settings.backbone]
    model = MoxinVLM(copy.deepcopy(backbone), used.to(device), seed=seed).to(device)
    logs, aligned = {}, None
    if settings.projector_start == "standardised":
        sample = [
            features.features[one.image or ""]
            for one in made.instructions[:: max(1, len(made.instructions) // 512)]
        ]
        model.projector.standardise(
            torch.stack(sample),
            float(backbone.model.embed_tokens.weight.detach().square().mean().sqrt()),
        )
    known = features.features if made.looked and not recipe.tuned_towers else None
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "seed": seed,
        "features": known,
        "progress": progress,
    }
    if recipe.align:
        logs["align"] = train_vlm(
            model,
            made.captions,
            made.images,
            stage="align",
            settings=settings.align,
            folder=folder / "align",
            **common,
        )
        aligned = copy.deepcopy(model.to(device).projector)
    tuning = settings.finetune
    if recipe.epochs is not None:
        tuning = tuning.model_copy(update={"epochs": recipe.epochs})
    stage = "full-finetune" if recipe.tuned_towers else "finetune"
    logs["finetune"] = train_vlm(
        model,
        made.instructions,
        made.images,
        stage=stage,
        settings=tuning,
        folder=folder / "finetune",
        **common,
    )
    return Trained(model.to(device).eval(), logs, aligned)


def answer(
    model: MoxinVLM,
    tokenizer: Any,
    items: Sequence[Item],
    features: Tensor | None,
    settings: Any,
    *,
    progress: Progress | None = None,
) -> list[str]:
    """An answer to each item: the likeliest choice, or what is written greedily where there is
    none.

    features: `[n, patches, channels]`, the picture that each item is shown, or None: blind.
    settings: answer_batch, max_new_tokens, finetune.precision (it answers in what it was trained
    in).
    """
    with autocast(settings.finetune.precision, model.device):
        return _answer(model, tokenizer, items, features, settings, progress)


def _answer(
    model: MoxinVLM,
    tokenizer: Any,
    items: Sequence[Item],
    features: Tensor | None,
    settings: Any,
    progress: Progress | None,
) -> list[str]:
    answers = [""] * len(items)
    prompts = [encode_prompt(tokenizer, [], item.question) for item in items]
    closed = [place for place, item in enumerate(items) if item.choices]
    step = settings.answer_batch
    for start in range(0, len(closed), step):
        places = closed[start : start + step]
        ids = [
            [
                [*tokens(tokenizer, choice), tokenizer.eos_token_id]
                for choice in items[place].choices
            ]
            for place in places
        ]
        scores = model.answer_log_likelihoods(
            [prompts[place] for place in places],
            ids,
            features=None if features is None else features[places],
            batch_rows=step,
        )
        for place, said in zip(
            places, scoring.chosen([items[place] for place in places], scores), strict=True
        ):
            answers[place] = said
        if progress is not None:
            progress(start + len(places), len(items), "answering")
    opened = [place for place, item in enumerate(items) if not item.choices]
    for start in range(0, len(opened), step):
        places = opened[start : start + step]
        batch = pad_examples([(prompts[place], [-100] * len(prompts[place])) for place in places])
        made = model.generate(
            None,
            batch["input_ids"].to(model.device),
            max_new_tokens=settings.max_new_tokens,
            features=None if features is None else features[places].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for place, ids in zip(places, made.tolist(), strict=True):
            answers[place] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answers


def baselines(
    models: Sequence[MoxinVLM],
    answers: Sequence[list[str]],
    train: Sequence[Item],
    test: Sequence[Item],
    features: Tensor,
    tokenizer: Any,
    settings: Any,
    *,
    seed: int,
    progress: Progress | None = None,
) -> list[dict[str, list[str]]]:
    """For each model of one recipe (a seed each) the answers by answerer: `model`, its own of
    `answers`; `blind`, its own without a picture; `shuffled`, with another question's; `majority`
    and `nearest`, of the training questions, which are alike for all.

    features: `[n, patches, channels]` of the test questions' pictures. seed: which other picture a
    question is shown.
    """
    others = features[scoring.shuffled_places(test, seed)]
    common = {"majority": scoring.majority(train, test), "nearest": scoring.nearest(train, test)}
    found = []
    for model, said in zip(models, answers, strict=True):
        blind, shuffled = (
            answer(model, tokenizer, test, given, settings, progress=progress)
            for given in (None, others)
        )
        found.append({"model": said, "blind": blind, "shuffled": shuffled, **common})
    return found


def compare(
    runs: pd.DataFrame, interval: Callable[[Any], Any], base: str = "no-align"
) -> pd.DataFrame:
    """Each recipe's accuracy minus that of `base` with the same seed, over seeds, with its
    interval.

    runs: columns arm, seed, accuracy. interval: differences to (value, low, high),
    `statistics.seed_interval`. `seen` says: above, below, or no difference seen; fewer than three
    seeds decide nothing.
    """
    wide = runs.pivot(index="seed", columns="arm", values="accuracy")
    rows = {}
    for arm in [name for name in dict.fromkeys(runs["arm"]) if name != base]:
        gap, low, high = interval(wide[arm] - wide[base])
        said = "above" if low > 0 else "below" if high < 0 else "no difference seen"
        rows[arm] = {
            "accuracy": wide[arm].mean(),
            f"minus {base}": gap,
            "low": low,
            "high": high,
            "seen": said if len(wide) > 2 else f"{len(wide)} seed(s): not decided",
        }
    return pd.DataFrame(rows).T.rename_axis("recipe")


def shown(
    name: str, run: Trained, towers: Towers, seen: Seen, items: Sequence[Item], *, device: str
) -> Tensor:
    """What the towers of a trained recipe make of the items' pictures: tuned towers look anew."""
    recipe = RECIPES[name]
    if recipe.tuned_towers:
        pictures = {item.example().image or "": item.picture for item in items}
        return look(run.model.towers, pictures, device=device).of(items)
    return only(towers, recipe.which, seen)[1].of(items)


class Runs(NamedTuple):
    """All trainings of a stage, each recipe's by seed."""

    trained: dict[str, list[Trained]]
    """Of `kept` recipes."""
    answers: dict[str, list[list[str]]]
    table: pd.DataFrame
    """One row a training: arm, seed, accuracy over all questions, final training loss."""


def run_all(
    towers: Towers,
    backbones: Mapping[str, MoxinForCausalLM],
    made: Material,
    test: Sequence[Item],
    seen: Seen,
    tokenizer: Any,
    settings: Any,
    *,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress | None = None,
    kept: Sequence[str] = ("align", "no-align"),
) -> Runs:
    """Every recipe of `settings.arms` with `settings.seeds` seeds from `seed` on, trained on the
    same, scored on `test`.
    """
    trained: dict[str, list[Trained]] = {arm: [] for arm in settings.arms if arm in kept}
    answers: dict[str, list[list[str]]] = {arm: [] for arm in settings.arms}
    rows = []
    for arm in settings.arms:
        for one_seed in range(seed, seed + settings.seeds):
            named = None if progress is None else _named(progress, f"{arm}, seed {one_seed}")
            run = run_recipe(
                arm,
                towers,
                backbones,
                made,
                seen,
                tokenizer,
                settings,
                seed=one_seed,
                folder=folder / arm / str(one_seed),
                device=device,
                progress=named,
            )
            features = shown(arm, run, towers, seen, test, device=device)
            said = answer(run.model, tokenizer, test, features, settings, progress=named)
            accuracy = float(scoring.judge(test, said).mean())
            loss = float(run.logs["finetune"]["loss"].tail(10).mean())
            rows.append({"arm": arm, "seed": one_seed, "accuracy": accuracy, "loss": loss})
            answers[arm].append(said)
            if arm in kept:
                trained[arm].append(run)
    return Runs(trained, answers, pd.DataFrame(rows))


def _named(progress: Progress, name: str) -> Progress:
    """Progress that says of which training it is."""
    return lambda done, total, text: progress(done, total, f"{name}: {text}")


def captioner(run: Trained, towers: Towers, backbone: MoxinForCausalLM, *, device: str) -> MoxinVLM:
    """The untouched language model behind the projector as alignment left it. Raises ValueError
    where nothing was aligned.
    """
    if run.aligned is None:
        raise ValueError("this recipe has no alignment, so there is no projector to caption with")
    return MoxinVLM(backbone, towers.to(device), run.aligned.to(device)).eval()


def verdicts(compared: pd.DataFrame, base: str = "no-align") -> dict[str, tuple[str, str]]:
    """Claim to verdict and evidence, from `compare`'s table; only claims all of whose recipes were
    run.

    That nothing is lost falls if the rival is above. That something is better stands if every rival
    is below and falls if one is above; between the two it is undecided, which is no verdict.
    """
    arms: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        if recipe.claim:
            arms.setdefault(recipe.claim, []).append(name)
    found = {}
    for claim, names in arms.items():
        if not set(names) <= set(compared.index):
            continue
        seen = compared.loc[names, "seen"]
        worse = [
            name for name in names if name != "three-epochs"
        ]  # a third epoch may add nothing, and must not be better
        if (seen == "above").any():
            verdict = "contradicted"
        elif claim in ("vlm.single-stage", "vlm.base-backbone") or bool(
            (seen[worse] == "below").all()
        ):
            verdict = "reproduced"
        else:
            verdict = "not attempted"
        evidence = "; ".join(
            f"{name} minus {base} {row[f'minus {base}']:+.3f}"
            + (f" ({row['low']:+.3f} to {row['high']:+.3f})" if row["low"] <= row["high"] else "")
            for name, row in compared.loc[names].iterrows()
        )
        undecided = (
            "Run, but undecided: these seeds do not tell the recipes apart. "
            if verdict == "not attempted"
            else ""
        )
        found[claim] = (
            verdict,
            f"{undecided}Accuracy over all tasks (Student's 95 % interval over seeds): {evidence}.",
        )
    return found
