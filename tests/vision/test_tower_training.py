"""SigLIP's and DINO's losses, the views they see, and that they learn and resume."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from open_clip.loss import SigLipLoss

from moxin_lab.scales import load
from moxin_lab.scales.sections import DinoTrainingSettings, SiglipTrainingSettings
from moxin_lab.vision.tower_training import (
    Captioned,
    DinoPair,
    SiglipPair,
    Views,
    augment,
    dino_loss,
    says_uniform,
    siglip_loss,
    train_dino,
    train_siglip,
)
from moxin_lab.vision.towers import build_towers, pooled
from tests.vision.conftest import OPTIMISATION, TINY_TOWERS

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 60, 220),
    "black": (10, 10, 10),
}
PLAIN = {
    "text_encoder": "transformer",
    "nameless_captions": False,
    "token_dropout": 0.0,
    "view_strength": 1.0,
}
WIDE = {"text_width": 96, "text_layers": 2, "text_heads": 4, "text_tokens": 24, **PLAIN}
NARROW = {"text_width": 16, "text_layers": 1, "text_heads": 2, "text_tokens": 6, **PLAIN}
STEPS = {
    "epochs": 30,
    "examples_per_step": 4,
    "micro_batch_examples": 4,
    "checkpoint_every_steps": 10,
    "learning_rate": 3e-3,
    "weight_decay": 1e-4,
}
SIGLIP = SiglipTrainingSettings(**{**OPTIMISATION, **STEPS}, **NARROW)
DROPPED = SIGLIP.model_copy(update={"token_dropout": 0.25})
LSA = SIGLIP.model_copy(update={"text_encoder": "lsa", "text_width": 3, "text_tokens": 12})
DINO_STEPS = {
    "epochs": 3,
    "examples_per_step": 8,
    "micro_batch_examples": 8,
    "checkpoint_every_steps": 2,
}
DINO = DinoTrainingSettings(
    **{**OPTIMISATION, **DINO_STEPS, "learning_rate": 1e-3, "weight_decay": 0.04},
    prototypes=16,
    teacher_momentum=0.99,
    center_momentum=0.9,
    student_temperature=0.1,
    teacher_temperature=0.04,
    view_strength=1.0,
)
CPU = {"accelerator": "cpu"}


def _pictures(count=4):
    pictures = np.zeros((count, 32, 32, 4), dtype=np.uint8)
    for picture, colour in zip(pictures, list(COLOURS.values()) * count, strict=False):
        picture[6:26, 6:26] = (*colour, 255)
    return pictures


def test_the_bias_starts_where_open_clips_loss_is_balanced(byte_tokenizer):
    wide = SiglipTrainingSettings(**{**OPTIMISATION, "examples_per_step": 256}, **WIDE)
    pair = SiglipPair(build_towers(TINY_TOWERS).siglip, byte_tokenizer, wide)
    assert pair.logit_bias.item() == pytest.approx(-math.log(255))
    # With equal logits the one positive and 255 negatives of a row pull the bias with forces that
    # are nearly equal.
    bias = pair.logit_bias.detach().clone().requires_grad_()
    zeros = torch.zeros(256, 8)
    SigLipLoss()(zeros, zeros, torch.tensor(1.0), bias).backward()
    published = torch.tensor(-10.0, requires_grad=True)
    SigLipLoss()(zeros, zeros, torch.tensor(1.0), published).backward()
    assert abs(bias.grad.item()) < 0.01 < 0.9 < abs(published.grad.item())


def test_the_loss_is_that_of_every_pair(byte_tokenizer):
    pair = SiglipPair(build_towers(TINY_TOWERS).siglip, byte_tokenizer, SIGLIP).eval()
    batch = {"view0": torch.randn(4, 3, 32, 32), "ids": pair.encode_texts(list(COLOURS))}
    images, texts = (values.detach() for values in pair(batch["view0"], batch["ids"]))
    logits = 10 * images @ texts.T - math.log(3)
    signs = 2 * torch.eye(4) - 1
    wanted = -torch.nn.functional.logsigmoid(signs * logits).sum() / 4
    torch.testing.assert_close(siglip_loss(pair, batch)["loss"].detach(), wanted)


def test_siglip_learns_colours_and_resumes_bitwise(byte_tokenizer, tmp_path):
    captions = [[name, f"{name} box"] for name in COLOURS]
    towers = build_towers(TINY_TOWERS)
    killed = copy.deepcopy(towers)
    pair, log = train_siglip(
        towers,
        _pictures(),
        captions,
        byte_tokenizer,
        settings=SIGLIP,
        folder=tmp_path / "a",
        trainer_options=CPU,
    )
    assert log["loss"].tail(5).mean() < 0.8 * log["loss"].head(5).mean()
    assert pair.tower is towers.siglip and {"scale", "bias"} <= set(log)
    assert (
        pair.embed_texts(["red"]).shape
        == pooled(pair.tower, torch.zeros(1, 3, 32, 32)).shape
        == (1, 32)
    )

    def stop(step, total, text):
        if step == 15:
            raise KeyboardInterrupt

    def again(**options):
        return train_siglip(
            copy.deepcopy(killed),
            _pictures(),
            captions,
            byte_tokenizer,
            settings=SIGLIP,
            folder=tmp_path / "b",
            trainer_options=CPU,
            **options,
        )

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        again(progress=stop)
    resumed, second = again()
    assert second.equals(log)
    for wanted, found in zip(
        pair.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(wanted, found)


def test_a_share_of_the_tokens_is_left_out_anew_each_step_and_none_by_default():
    ids = [torch.full((1, 50), 7)] * 16
    common = {"size": 32, "name": "siglip", "pad": 3}
    settings = DROPPED.model_copy(update={"examples_per_step": 16})
    first, second = (
        Captioned(_pictures(16), ids, settings, 0, **common).batch(step)["ids"] for step in (0, 1)
    )
    assert set(first.unique().tolist()) == {3, 7} and not torch.equal(first, second)
    assert float((first == 3).float().mean()) == pytest.approx(0.25, abs=0.06)
    again = Captioned(_pictures(16), ids, settings, 0, **common).batch(0)["ids"]
    assert torch.equal(first, again)
    plain = Captioned(
        _pictures(16), ids, settings.model_copy(update={"token_dropout": 0.0}), 0, **common
    )
    assert (plain.batch(0)["ids"] == 7).all()


def test_views_are_as_strong_as_the_settings_say():
    def view(strength):
        settings = SIGLIP.model_copy(update={"view_strength": strength})
        return Captioned(
            _pictures(4), [torch.zeros(1, 6)] * 4, settings, 0, size=32, name="siglip"
        ).batch(0)["view0"]

    default, whole, none = (
        Views(_pictures(4), SIGLIP, 0, size=32, name="siglip", views=1),
        view(1.0),
        view(0.0),
    )
    assert torch.equal(default.batch(0)["view0"], whole)
    assert torch.equal(none, none.flip(-1)) and not torch.equal(
        whole, whole.flip(-1)
    )  # the squares stay where they are


def test_siglip_learns_against_locked_lsa_texts_and_resumes_bitwise(byte_tokenizer, tmp_path):
    captions = [[name, f"{name} box"] for name in COLOURS]

    def run(folder, **options):
        return train_siglip(
            build_towers(TINY_TOWERS),
            _pictures(),
            captions,
            byte_tokenizer,
            settings=LSA,
            folder=folder,
            trainer_options=CPU,
            **options,
        )

    def stop(step, total, text):
        if step == 15:
            raise KeyboardInterrupt

    pair, log = run(tmp_path / "a")
    assert not list(pair.text.parameters())
    assert log["loss"].tail(5).mean() < 0.8 * log["loss"].head(5).mean()
    fresh = SiglipPair(build_towers(TINY_TOWERS).siglip, byte_tokenizer, LSA, captions=captions)
    assert (fresh.embed_texts(["red box"]) == pair.embed_texts(["red box"])).all()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path / "b", progress=stop)
    resumed, second = run(tmp_path / "b")
    assert second.equals(log)
    for wanted, found in zip(
        pair.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(wanted, found)


def test_the_scales_say_which_text_encoder_they_train():
    encoders = {name: load(name).vision.siglip.text_encoder for name in ("tiny", "small", "full")}
    assert encoders == {"tiny": "transformer", "small": "lsa", "full": "transformer"}
    with pytest.raises(ValueError, match="token_dropout"):
        SiglipTrainingSettings(**{**SIGLIP.model_dump(), "token_dropout": 1.0})


def test_an_image_without_caption_is_refused(byte_tokenizer, tmp_path):
    towers = build_towers(TINY_TOWERS)
    with pytest.raises(ValueError, match="at least one text"):
        train_siglip(
            towers,
            _pictures(),
            [["a"], [], ["b"], ["c"]],
            byte_tokenizer,
            settings=SIGLIP,
            folder=tmp_path,
        )


def test_settings_that_would_cut_the_step_of_every_pair_are_refused(byte_tokenizer, tmp_path):
    captions = [[name] for name in COLOURS]
    for size in (2, 8):
        settings = SIGLIP.model_copy(update={"micro_batch_examples": size})
        with pytest.raises(
            ValueError,
            match=f"micro_batch_examples is {size} and examples_per_step 4: .* never cut",
        ):
            train_siglip(
                build_towers(TINY_TOWERS),
                _pictures(),
                captions,
                byte_tokenizer,
                settings=settings,
                folder=tmp_path,
            )
    for name in ("tiny", "small", "full"):
        scale = load(name).vision.siglip
        assert scale.micro_batch_examples == scale.examples_per_step


def test_dino_gives_the_tower_its_teacher_and_resumes_bitwise(tmp_path):
    def run(folder, **options):
        towers = build_towers(TINY_TOWERS)
        log = train_dino(
            towers, _pictures(16), settings=DINO, folder=folder, trainer_options=CPU, **options
        )
        return towers, log

    def stop(step, total, text):
        if step == 3:
            raise KeyboardInterrupt

    towers, log = run(tmp_path / "a")
    assert len(log) == 6 and 0 < log["teacher_entropy"].iloc[-1] <= math.log(16) + 1e-6
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path / "b", progress=stop)
    resumed, second = run(tmp_path / "b")
    assert second.equals(log)
    for wanted, found in zip(
        towers.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(wanted, found)
    fresh = build_towers(TINY_TOWERS)
    assert not torch.equal(
        fresh.dino.blocks[0].mlp.fc1.weight, towers.dino.blocks[0].mlp.fc1.weight
    )
    assert torch.equal(
        fresh.siglip.blocks[0].mlp.fc1.weight, towers.siglip.blocks[0].mlp.fc1.weight
    )


def test_a_dino_that_ends_uniform_is_told_from_one_that_learns():
    even = math.log(64)

    def log(*ends):
        return pd.DataFrame({"loss": [0.5 * even] * 5 + list(ends)})

    assert says_uniform(log(*[0.995 * even] * 10), 64) and says_uniform(
        log(*[1.005 * even] * 10), 64
    )
    assert not says_uniform(log(*[0.98 * even] * 10), 64) and not says_uniform(
        log(*[1.02 * even] * 10), 64
    )
    assert says_uniform(log(0.9 * even, *[even] * 10), 64)  # the last ten steps alone
    assert not says_uniform(log(*[even] * 10), 1024)


def test_a_student_that_says_the_same_of_everything_ends_uniform():
    # What a collapsed training is: no picture moves the outputs, and the centre has taken up all
    # that they share.
    pair = DinoPair(build_towers(TINY_TOWERS).dino, DINO)
    with torch.no_grad():
        for half in (pair.student, pair.teacher):
            half["head"][-1].parametrizations.weight.original0.zero_()
    loss = dino_loss(pair, Views(_pictures(8), DINO, 0, size=32, name="dino", views=2).batch(0))[
        "loss"
    ].item()
    assert says_uniform(pd.DataFrame({"loss": [loss]}), DINO.prototypes)


def test_at_small_scale_the_class_tokens_of_pictures_differ_by_more_than_a_step_moves_them():
    small = load("small").vision
    views = Views(
        _pictures(8),
        small.dino.model_copy(update={"examples_per_step": 8}),
        0,
        size=64,
        name="dino",
        views=1,
    )

    def between_pictures(shape):
        seen = []
        tower = build_towers(
            small.towers.model_copy(update={"dino_shape": shape, "which": ("dino",)})
        ).dino
        tower.norm.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0][:, 0].detach())
        )
        tower(views.batch(0)["view0"])
        return float(seen[0].std(dim=0).mean())

    timms_own = {
        name: value for name, value in small.towers.dino_shape.items() if name != "init_values"
    }
    assert (
        between_pictures(timms_own)
        < 1e-5
        < small.dino.learning_rate
        < between_pictures(small.towers.dino_shape)
    )


def test_dinos_views_are_as_strong_as_the_settings_say(tmp_path):
    def first_loss(strength):
        settings = DINO.model_copy(update={"view_strength": strength, "epochs": 1})
        towers = build_towers(TINY_TOWERS)
        folder = tmp_path / str(strength)
        return train_dino(
            towers, _pictures(16), settings=settings, folder=folder, trainer_options=CPU
        )["loss"].iloc[0]

    assert first_loss(0.0) != first_loss(1.0)


def test_the_teacher_has_no_gradient_and_follows_slowly():
    pair = DinoPair(build_towers(TINY_TOWERS).dino, DINO)
    views = Views(_pictures(8), DINO, 0, size=32, name="dino", views=2)
    dino_loss(pair, views.batch(0))["loss"].backward()
    assert all(p.grad is None for p in pair.teacher.parameters())
    assert all(p.grad is not None for p in pair.student["head"].parameters() if p.requires_grad)
    before, seen = copy.deepcopy(pair.teacher), pair.seen.clone()
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(1.0)
    pair.follow()
    for old, new in zip(before.parameters(), pair.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.01), rtol=0, atol=1e-3)
    torch.testing.assert_close(pair.center, 0.1 * seen)
    assert not pair.seen.any()


def test_views_break_pixel_alignment_and_do_not_depend_on_the_cut():
    pictures = torch.as_tensor(_pictures(8))
    one, two = (augment(pictures, 32, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert one.shape == (8, 3, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert (one - two).abs().mean() > 0.05
    corner = one[:, :, 0, 0]
    assert (corner >= 0.8).all() and corner.std() > 0.01  # another background each time
    inside = (one - one[:, :, :1, :1]).abs().amax(dim=1) > 0.05
    assert len({int(shape.sum()) for shape in inside}) > 4  # the square has another size each time
    views = Views(
        _pictures(16),
        DINO.model_copy(update={"micro_batch_examples": 2}),
        3,
        size=32,
        name="dino",
        views=2,
    )
    whole = views.batch(1)
    parts = [views.batch(1, part=part, parts=4) for part in range(4)]
    for name, values in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values)
