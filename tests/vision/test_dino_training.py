"""`moxin_lab.vision.dino_training`: the teacher, detection of a collapse, the effect of settings,
and that a killed run continues bitwise.
"""

import copy
import math

import pandas as pd
import pytest
import torch

from moxin_lab.scales import load
from moxin_lab.vision.dino_training import (
    DinoPair,
    collapse_warning,
    dino_loss,
    has_collapsed,
    train_dino,
    training_in_words,
)
from moxin_lab.vision.towers import build_towers
from moxin_lab.vision.views import ViewStream
from tests.vision.conftest import CPU, DINO, TINY_TOWERS, colour_squares


def test_the_tower_gets_the_teachers_weights_and_a_killed_run_continues_bitwise(tmp_path):
    def run(folder, **options):
        towers = build_towers(TINY_TOWERS)
        log = train_dino(
            towers, colour_squares(16), settings=DINO, folder=folder, trainer_options=CPU, **options
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
    for expected, actual in zip(
        towers.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual)
    fresh = build_towers(TINY_TOWERS)
    assert not torch.equal(
        fresh.dino.blocks[0].mlp.fc1.weight, towers.dino.blocks[0].mlp.fc1.weight
    )
    assert torch.equal(
        fresh.siglip.blocks[0].mlp.fc1.weight, towers.siglip.blocks[0].mlp.fc1.weight
    )


def test_a_collapse_is_distinguished_from_learning():
    even = math.log(64)

    def log(*ends):
        return pd.DataFrame({"loss": [0.5 * even] * 5 + list(ends)})

    assert has_collapsed(log(*[0.995 * even] * 10), 64) and has_collapsed(
        log(*[1.005 * even] * 10), 64
    )
    assert not has_collapsed(log(*[0.98 * even] * 10), 64) and not has_collapsed(
        log(*[1.02 * even] * 10), 64
    )
    assert has_collapsed(log(0.9 * even, *[even] * 10), 64)  # the last ten steps alone
    assert not has_collapsed(log(*[even] * 10), 1024)
    assert "= 4.16" in collapse_warning(log(*[even] * 10), 64)
    assert collapse_warning(log(*[even] * 10), 1024) == ""
    both = {"SigLIP": log(*[1.0] * 10), "DINO": log(*[even] * 10)}
    assert "collapsed: its loss" in training_in_words(both, 64)
    assert "ln(1024) = 6.93" in training_in_words(both, 1024)
    assert training_in_words({}, 64) == "Published towers were loaded."


def test_a_student_with_the_same_output_for_every_picture_has_collapsed():
    # In a collapsed training no picture changes the outputs, and the centre is their common value.
    pair = DinoPair(build_towers(TINY_TOWERS).dino, DINO)
    with torch.no_grad():
        for half in (pair.student, pair.teacher):
            half["head"][-1].parametrizations.weight.original0.zero_()
    loss = dino_loss(
        pair, ViewStream(colour_squares(8), DINO, 0, size=32, name="dino", views=2).batch(0)
    )["loss"].item()
    assert has_collapsed(pd.DataFrame({"loss": [loss]}), DINO.prototypes)


def test_class_tokens_of_pictures_differ_by_more_than_a_step_moves_them_at_small_scale():
    small = load("small").vision
    views = ViewStream(
        colour_squares(8),
        small.dino.model_copy(update={"examples_per_step": 8}),
        0,
        size=64,
        name="dino",
        views=1,
    )

    def betweencolour_squares(shape):
        class_tokens = []
        tower = build_towers(
            small.towers.model_copy(update={"dino_shape": shape, "which": ("dino",)})
        ).dino
        tower.norm.register_forward_pre_hook(
            lambda _, inputs: class_tokens.append(inputs[0][:, 0].detach())
        )
        tower(views.batch(0)["view0"])
        return float(class_tokens[0].std(dim=0).mean())

    timms_default = {
        name: value for name, value in small.towers.dino_shape.items() if name != "init_values"
    }
    assert (
        betweencolour_squares(timms_default)
        < 1e-5
        < small.dino.learning_rate
        < betweencolour_squares(small.towers.dino_shape)
    )


def test_view_strength_of_the_settings_reaches_the_views(tmp_path):
    def first_loss(strength):
        settings = DINO.model_copy(update={"view_strength": strength, "epochs": 1})
        towers = build_towers(TINY_TOWERS)
        folder = tmp_path / str(strength)
        return train_dino(
            towers, colour_squares(16), settings=settings, folder=folder, trainer_options=CPU
        )["loss"].iloc[0]

    assert first_loss(0.0) != first_loss(1.0)


def test_the_teacher_has_no_gradient_and_follows_slowly():
    pair = DinoPair(build_towers(TINY_TOWERS).dino, DINO)
    views = ViewStream(colour_squares(8), DINO, 0, size=32, name="dino", views=2)
    dino_loss(pair, views.batch(0))["loss"].backward()
    assert all(p.grad is None for p in pair.teacher.parameters())
    assert all(p.grad is not None for p in pair.student["head"].parameters() if p.requires_grad)
    before, output = copy.deepcopy(pair.teacher), pair.step_output.clone()
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(1.0)
    pair.update_teacher()
    for old, new in zip(before.parameters(), pair.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.01), rtol=0, atol=1e-3)
    torch.testing.assert_close(pair.center, 0.1 * output)
    assert not pair.step_output.any()
