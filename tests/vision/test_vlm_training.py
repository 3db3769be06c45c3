"""`moxin_lab.vision.vlm_training`: which parts a stage trains, that a step does not depend on how
it is cut, and that a killed run continues bitwise.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moxin_lab.scales.sections import VlmTrainingSettings
from moxin_lab.vision import vlm_training
from moxin_lab.vision.data import Example
from moxin_lab.vision.features import compute_features
from moxin_lab.vision.prompts import PromptError
from moxin_lab.vision.vlm_training import (
    caption_losses,
    caption_nats,
    mismatched_caption_nats,
    train_vlm,
)
from tests.vision.conftest import CPU, OPTIMISATION

CHANGED = {"epochs": 2, "examples_per_step": 8, "micro_batch_examples": 8, "learning_rate": 1e-3}
SETTINGS = VlmTrainingSettings(
    **{**OPTIMISATION, **CHANGED, "checkpoint_every_steps": 2},
    max_tokens=48,
    activation_checkpointing="none",
)
RNG = np.random.default_rng(0)
IMAGES = {f"{n}.png": RNG.integers(0, 255, (20 + n, 32, 3), dtype=np.uint8) for n in range(12)}
EXAMPLES = [
    Example(str(n), f"{n}.png" if n < 12 else None, (("Which?", "ab" * (1 + n % 5)), ("And?", "z")))
    for n in range(16)
]


def _train(model, tokenizer, folder, settings=SETTINGS, **options):
    options = {"stage": "finetune", **options}
    return train_vlm(
        model,
        EXAMPLES,
        IMAGES,
        tokenizer,
        settings=settings,
        folder=folder,
        trainer_options={"accelerator": "cpu"},
        **options,
    )


def _changed(before, after):
    return {
        name.split(".")[0] + "." + name.split(".")[1]
        if name.startswith("towers")
        else name.split(".")[0]
        for (name, old), new in zip(
            before.state_dict().items(), after.state_dict().values(), strict=True
        )
        if not torch.equal(old, new)
    }


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("align", {"projector"}),
        ("finetune", {"projector", "decoder"}),
        ("full-finetune", {"projector", "decoder", "towers.dino", "towers.siglip"}),
    ],
)
def test_a_stage_changes_its_parts_and_no_others(tiny_vlm, byte_tokenizer, tmp_path, stage, parts):
    before = copy.deepcopy(tiny_vlm)
    log = _train(tiny_vlm, byte_tokenizer, tmp_path, stage=stage)
    assert _changed(before, tiny_vlm) == parts
    assert len(log) == 4 and log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert not tiny_vlm.training
    if stage == "full-finetune":  # what the features do not depend on stays
        assert torch.equal(
            before.towers.dino.blocks[2].mlp.fc1.weight,
            tiny_vlm.towers.dino.blocks[2].mlp.fc1.weight,
        )


def test_one_by_eight_equals_eight_by_one(tiny_vlm, byte_tokenizer, tmp_path):
    cut = copy.deepcopy(tiny_vlm)
    whole_log = _train(tiny_vlm, byte_tokenizer, tmp_path / "whole")
    cut_log = _train(
        cut,
        byte_tokenizer,
        tmp_path / "cut",
        SETTINGS.model_copy(update={"micro_batch_examples": 1}),
    )
    np.testing.assert_allclose(cut_log["loss"], whole_log["loss"], rtol=1e-4)
    np.testing.assert_allclose(cut_log["gradient_norm"], whole_log["gradient_norm"], rtol=1e-3)
    assert cut_log["targets"].tolist() == whole_log["targets"].tolist()
    worst = max(
        float((a - b).detach().abs().max())
        for a, b in zip(cut.parameters(), tiny_vlm.parameters(), strict=True)
    )
    # Adam turns rounding errors of tiny gradients into steps of up to the learning rate. A mean of
    # the micro-batches' means, which many trainers take, would differ more: answers differ in
    # length.
    assert worst < 2e-4
    with pytest.raises(
        ValueError, match="a step of 8 examples is not a multiple of micro_batch_examples"
    ):
        _train(
            tiny_vlm,
            byte_tokenizer,
            tmp_path / "odd",
            SETTINGS.model_copy(update={"micro_batch_examples": 3}),
        )


def test_a_killed_run_continues_bitwise(tiny_vlm, byte_tokenizer, tmp_path):
    killed, whole = copy.deepcopy(tiny_vlm), copy.deepcopy(tiny_vlm)
    log = _train(whole, byte_tokenizer, tmp_path / "whole")

    def stop(step, total, text):
        if text.startswith("finetune") and step == 3:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        _train(killed, byte_tokenizer, tmp_path / "killed", progress=stop)
    again = _train(tiny_vlm, byte_tokenizer, tmp_path / "killed")
    assert again.equals(log)
    for (name, expected), actual in zip(
        whole.state_dict().items(), tiny_vlm.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


def test_precomputed_features_train_like_pixels_and_no_step_opens_an_image(
    tiny_vlm, byte_tokenizer, tmp_path, monkeypatch
):
    features = compute_features(tiny_vlm.towers, IMAGES, device="cpu", batch_images=5)
    assert features["3.png"].shape == (4, 56)
    looking, given = copy.deepcopy(tiny_vlm), copy.deepcopy(tiny_vlm)
    log = _train(looking, byte_tokenizer, tmp_path / "looking")
    monkeypatch.setattr(
        vlm_training, "prepare_images", lambda *_: pytest.fail("an image was opened")
    )
    again = _train(given, byte_tokenizer, tmp_path / "given", features=features)
    np.testing.assert_allclose(again["loss"], log["loss"], rtol=1e-4)
    with pytest.raises(ValueError, match="2 images have no features"):
        _train(given, byte_tokenizer, tmp_path / "less", features=dict(list(features.items())[2:]))
    with pytest.raises(ValueError, match="stale"):
        _train(given, byte_tokenizer, tmp_path / "stale", features=features, stage="full-finetune")


def test_an_example_without_loss_is_refused_before_the_first_step(
    tiny_vlm, byte_tokenizer, tmp_path
):
    with pytest.raises(PromptError, match="example 0"):
        _train(tiny_vlm, byte_tokenizer, tmp_path, SETTINGS.model_copy(update={"max_tokens": 6}))
    with pytest.raises(ValueError, match="unknown stage"):
        _train(tiny_vlm, byte_tokenizer, tmp_path, stage="pretrain")


def test_caption_nats_equal_the_losses_of_the_model(tiny_vlm, byte_tokenizer):
    encoded = [
        vlm_training.encode_example(byte_tokenizer, one, stage="align", max_tokens=48)
        for one in EXAMPLES[:5]
    ]
    features = torch.stack(
        list(compute_features(tiny_vlm.towers, IMAGES, device="cpu").values())[:5]
    )
    nats = caption_nats(tiny_vlm, encoded, features, batch_rows=2)
    ids, labels = torch.tensor(encoded[3].input_ids)[None], torch.tensor(encoded[3].labels)[None]
    assert nats[3] == pytest.approx(
        float(tiny_vlm(None, ids, labels, features=features[3:4]).loss.detach()), abs=1e-4
    )
    assert not np.allclose(nats, caption_nats(tiny_vlm, encoded, None))
    # Of five images, the four that are not the example's own.
    others = mismatched_caption_nats(tiny_vlm, encoded, features, others=4, batch_rows=2)
    each = [
        caption_nats(tiny_vlm, encoded, features[[(n - by) % 5 for n in range(5)]])
        for by in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(others, np.mean(each, axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="do not have 5 other images"):
        mismatched_caption_nats(tiny_vlm, encoded, features, others=5)
    styles = [features, features.flip(1)]
    own, wrong, _ = caption_losses(tiny_vlm, encoded, styles, others=4).values()
    np.testing.assert_allclose(
        own, np.mean([caption_nats(tiny_vlm, encoded, style) for style in styles], axis=0)
    )
    again = [mismatched_caption_nats(tiny_vlm, encoded, style, others=4) for style in styles]
    np.testing.assert_allclose(wrong, np.mean(again, axis=0))


@pytest.mark.parametrize(
    ("stage", "precomputed"),
    [*((stage, False) for stage in vlm_training.STAGES), ("align", True), ("finetune", True)],
)
def test_text_only_rows_train_in_every_stage(
    tiny_vlm, byte_tokenizer, tmp_path, stage, precomputed
):
    """A micro-batch of text alone does not reach projector and towers: they get a gradient of 0,
    and the step is that of the same rows in one batch.
    """
    words = [Example(f"t{i}", None, (("Say it.", f"word {i}"),)) for i in range(3)]
    features = compute_features(tiny_vlm.towers, IMAGES, device="cpu") if precomputed else None
    logs, models = [], []
    for rows in (4, 1):  # of 4 rows, of which one has an image
        model = copy.deepcopy(tiny_vlm)
        logs.append(
            train_vlm(
                model,
                [EXAMPLES[0], *words],
                IMAGES,
                byte_tokenizer,
                stage=stage,
                settings=SETTINGS.model_copy(
                    update={"examples_per_step": 4, "micro_batch_examples": rows, "epochs": 1}
                ),
                folder=tmp_path / str(rows),
                features=features,
                trainer_options=CPU,
            )
        )
        models.append(model)
    together, alone = logs
    np.testing.assert_allclose(alone["loss"], together["loss"], rtol=1e-4)
    np.testing.assert_allclose(alone["gradient_norm"], together["gradient_norm"], rtol=1e-3)
    assert together["gradient_norm"].iloc[0] > 0


@pytest.mark.parametrize("stage", vlm_training.STAGES)
def test_text_alone_trains_without_any_image_and_moves_only_the_decoder(
    tiny_vlm, byte_tokenizer, tmp_path, stage
):
    words = [Example(f"t{i}", None, (("Say it.", f"word {i}"),)) for i in range(4)]
    before = {name: value.clone() for name, value in tiny_vlm.state_dict().items()}
    log = train_vlm(
        tiny_vlm,
        words,
        {},
        byte_tokenizer,
        stage=stage,
        settings=SETTINGS.model_copy(
            update={"examples_per_step": 4, "micro_batch_examples": 2, "weight_decay": 0.0}
        ),
        folder=tmp_path,
        trainer_options=CPU,
    )
    assert np.isfinite(log["loss"]).all() and (log["targets"] > 0).all()
    moved = {
        name.partition(".")[0]
        for name, value in tiny_vlm.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == (set() if stage == "align" else {"decoder"})


def test_other_images_features_or_tower_settings_are_another_training(byte_tokenizer, tiny_vlm):
    settings = tiny_vlm.towers.settings
    encoded = [
        vlm_training.encode_example(byte_tokenizer, one, stage="align", max_tokens=48)
        for one in EXAMPLES
    ]

    def source(images, settings=settings):
        return vlm_training._pixel_source(images, settings, encoded)

    same = source(IMAGES)
    assert source({**IMAGES, "unused.png": "a"}) == source(IMAGES.__getitem__) == same
    brighter = {**IMAGES, "3.png": IMAGES["3.png"] ^ 1}
    folders = [lambda name, folder=folder: Path(folder) / name for folder in "ab"]
    pictures = {name: Image.fromarray(pixels) for name, pixels in IMAGES.items()}
    cropped = settings.model_copy(update={"resize": "crop"})
    assert settings.resize != "crop"
    different = [same, source(brighter), *map(source, folders), source(pictures)]
    different.append(source(IMAGES, cropped))
    assert len(set(different)) == 6


def test_a_training_on_other_features_or_images_is_not_continued(
    tiny_vlm, byte_tokenizer, tmp_path
):
    features = compute_features(tiny_vlm.towers, IMAGES, device="cpu")
    changed = {**features, "3.png": features["3.png"] + 1}
    start = copy.deepcopy(tiny_vlm)
    _train(copy.deepcopy(start), byte_tokenizer, tmp_path, features=features)
    for options in ({"features": changed}, {}):
        with pytest.raises(ValueError, match="belongs to another training: data was"):
            _train(copy.deepcopy(start), byte_tokenizer, tmp_path, **options)
