"""`moxin_lab.vision.siglip_training`: the loss and its bias, captions of a step, that the tower
learns, and that a killed run continues bitwise.
"""

import copy
import math

import pytest
import torch
from open_clip.loss import SigLipLoss

from moxin_lab.scales import load
from moxin_lab.scales.sections import SiglipTrainingSettings
from moxin_lab.vision.siglip_training import CaptionedViews, SiglipPair, siglip_loss, train_siglip
from moxin_lab.vision.towers import build_towers, pooled_features
from moxin_lab.vision.views import ViewStream
from tests.vision.conftest import COLOURS, CPU, OPTIMISATION, TINY_TOWERS, colour_squares

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


def test_the_bias_starts_where_open_clips_loss_is_balanced(byte_tokenizer):
    wide = SiglipTrainingSettings(**{**OPTIMISATION, "examples_per_step": 256}, **WIDE)
    pair = SiglipPair(build_towers(TINY_TOWERS).siglip, byte_tokenizer, wide)
    assert pair.logit_bias.item() == pytest.approx(-math.log(255))
    # With equal logits, the gradients of the one positive and the 255 negatives of a row nearly
    # cancel.
    bias = pair.logit_bias.detach().clone().requires_grad_()
    zeros = torch.zeros(256, 8)
    SigLipLoss()(zeros, zeros, torch.tensor(1.0), bias).backward()
    published = torch.tensor(-10.0, requires_grad=True)
    SigLipLoss()(zeros, zeros, torch.tensor(1.0), published).backward()
    assert abs(bias.grad.item()) < 0.01 < 0.9 < abs(published.grad.item())


def test_the_loss_sums_over_every_pair_of_the_step(byte_tokenizer):
    pair = SiglipPair(build_towers(TINY_TOWERS).siglip, byte_tokenizer, SIGLIP).eval()
    batch = {"view0": torch.randn(4, 3, 32, 32), "ids": pair.encode_texts(list(COLOURS))}
    images, texts = (values.detach() for values in pair(batch["view0"], batch["ids"]))
    logits = 10 * images @ texts.T - math.log(3)
    signs = 2 * torch.eye(4) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / 4
    torch.testing.assert_close(siglip_loss(pair, batch)["loss"].detach(), expected)


def test_siglip_learns_colours_and_a_killed_run_continues_bitwise(byte_tokenizer, tmp_path):
    captions = [[name, f"{name} box"] for name in COLOURS]
    towers = build_towers(TINY_TOWERS)
    killed = copy.deepcopy(towers)
    pair, log = train_siglip(
        towers,
        colour_squares(),
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
        == pooled_features(pair.tower, torch.zeros(1, 3, 32, 32)).shape
        == (1, 32)
    )

    def stop(step, total, text):
        if step == 15:
            raise KeyboardInterrupt

    def again(**options):
        return train_siglip(
            copy.deepcopy(killed),
            colour_squares(),
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
    for expected, actual in zip(
        pair.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual)


def test_token_dropout_differs_each_step_repeats_with_the_seed_and_can_be_off():
    ids = [torch.full((1, 50), 7)] * 16
    common = {"size": 32, "name": "siglip", "pad": 3}
    settings = DROPPED.model_copy(update={"examples_per_step": 16})
    first, second = (
        CaptionedViews(colour_squares(16), ids, settings, 0, **common).batch(step)["ids"]
        for step in (0, 1)
    )
    assert set(first.unique().tolist()) == {3, 7} and not torch.equal(first, second)
    assert float((first == 3).float().mean()) == pytest.approx(0.25, abs=0.06)
    again = CaptionedViews(colour_squares(16), ids, settings, 0, **common).batch(0)["ids"]
    assert torch.equal(first, again)
    plain = CaptionedViews(
        colour_squares(16), ids, settings.model_copy(update={"token_dropout": 0.0}), 0, **common
    )
    assert (plain.batch(0)["ids"] == 7).all()


def test_view_strength_of_the_settings_reaches_the_views():
    def view(strength):
        settings = SIGLIP.model_copy(update={"view_strength": strength})
        return CaptionedViews(
            colour_squares(4), [torch.zeros(1, 6)] * 4, settings, 0, size=32, name="siglip"
        ).batch(0)["view0"]

    default, whole, none = (
        ViewStream(colour_squares(4), SIGLIP, 0, size=32, name="siglip", views=1),
        view(1.0),
        view(0.0),
    )
    assert torch.equal(default.batch(0)["view0"], whole)
    assert torch.equal(none, none.flip(-1)) and not torch.equal(
        whole, whole.flip(-1)
    )  # the squares stay where they are


def test_siglip_learns_from_frozen_lsa_texts_and_a_killed_run_continues_bitwise(
    byte_tokenizer, tmp_path
):
    captions = [[name, f"{name} box"] for name in COLOURS]

    def run(folder, **options):
        return train_siglip(
            build_towers(TINY_TOWERS),
            colour_squares(),
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
    for expected, actual in zip(
        pair.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual)


def test_each_scale_states_its_text_encoder():
    encoders = {name: load(name).vision.siglip.text_encoder for name in ("tiny", "small", "full")}
    assert encoders == {"tiny": "transformer", "small": "lsa", "full": "transformer"}
    with pytest.raises(ValueError, match="token_dropout"):
        SiglipTrainingSettings(**{**SIGLIP.model_dump(), "token_dropout": 1.0})


def test_an_image_without_caption_is_refused(byte_tokenizer, tmp_path):
    towers = build_towers(TINY_TOWERS)
    with pytest.raises(ValueError, match="at least one text"):
        train_siglip(
            towers,
            colour_squares(),
            [["a"], [], ["b"], ["c"]],
            byte_tokenizer,
            settings=SIGLIP,
            folder=tmp_path,
        )


def test_settings_that_would_cut_a_step_are_refused(byte_tokenizer, tmp_path):
    captions = [[name] for name in COLOURS]
    for size in (2, 8):
        settings = SIGLIP.model_copy(update={"micro_batch_examples": size})
        with pytest.raises(
            ValueError,
            match=f"micro_batch_examples is {size} and examples_per_step 4: .* never cut",
        ):
            train_siglip(
                build_towers(TINY_TOWERS),
                colour_squares(),
                captions,
                byte_tokenizer,
                settings=settings,
                folder=tmp_path,
            )
    for name in ("tiny", "small", "full"):
        scale = load(name).vision.siglip
        assert scale.micro_batch_examples == scale.examples_per_step
