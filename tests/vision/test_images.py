"""`moxin_lab.vision.images`: a file is read as an image or refused by name, and each tower has its
own normalisation.
"""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision.images import (
    NORMALISATION,
    ImageError,
    normalise,
    open_image,
    prepare_images,
    resize,
)

RED = (200, 30, 40)


def _file(tmp_path, mode, name, **options):
    path = tmp_path / name
    Image.new("RGB", (40, 24), RED).convert(mode).save(path, **options)
    return path


def test_each_tower_has_the_normalisation_of_its_own_checkpoint():
    names = TowerSettings()
    for name in ("dino", "siglip"):
        published = timm.get_pretrained_cfg(getattr(names, name))
        assert (tuple(published.mean), tuple(published.std)) == NORMALISATION[name]
    picture = Image.new("RGB", (8, 8), (255, 255, 255))
    white = prepare_images([picture], TowerSettings(image_size=16))
    torch.testing.assert_close(white["siglip"], torch.ones(1, 3, 16, 16))
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(white["dino"][0, :, 3, 3], expected)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("P", "a.gif"),
        ("CMYK", "a.jpg"),
        ("RGBA", "b.png"),
        ("P", "p.png"),
        ("RGB", "a.webp"),
    ],
)
def test_every_colour_mode_gives_the_same_colour(tmp_path, mode, name):
    image = open_image(_file(tmp_path, mode, name))
    assert image.mode == "RGB" and image.size == (40, 24)
    assert np.abs(np.asarray(image).astype(int) - RED).max() < 52  # palettes and JPEG are lossy


def test_transparency_becomes_white_and_sixteen_bits_keep_their_range(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(open_image(tmp_path / "clear.png")).min() == 255
    ramp = np.linspace(0, 65_535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    result = np.asarray(open_image(tmp_path / "deep.png"))[..., 0]
    assert np.array_equal(result, ramp >> 8)
    bits = Image.new("1", (4, 4), 1)
    assert np.asarray(open_image(bits)).min() == 255


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "moving.gif"))[4, 4, 0] > 150


def test_bad_files_are_refused_by_name(tmp_path):
    good = _file(tmp_path, "RGB", "good.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg")
    bad = {
        "empty.png": b"",
        "text.png": b"this is no image",
        "cut.png": good[: len(good) // 2],
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:900],
        "flipped.png": good[:40] + bytes(255 - b for b in good[40:60]) + good[60:],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name.replace(".", r"\.")):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "absent.png")


def test_huge_and_zero_pixel_images_are_refused_before_decoding(tmp_path):
    path = _file(tmp_path, "RGB", "big.png")
    with pytest.raises(ImageError, match=r"big\.png: 40 x 24 pixels are more than 900"):
        open_image(path, max_pixels=900)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="not an image"):
        open_image(np.zeros((0, 4, 3), dtype=np.uint8))


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    how=st.sampled_from(["naive", "letterbox", "crop"]),
)
def test_every_size_becomes_a_square(width, height, how):
    result = resize(Image.new("RGB", (width, height), RED), 32, how, fill=(0, 0, 255))
    assert result.shape == (32, 32, 3) and result.dtype == np.uint8
    assert tuple(result[16, 16]) == RED or how == "letterbox"


def test_letterbox_keeps_the_aspect_ratio_and_crop_the_middle():
    wide = Image.new("RGB", (64, 32), RED)
    boxed = resize(wide, 32, "letterbox", fill=(0, 0, 255))
    assert tuple(boxed[2, 16]) == (0, 0, 255) and tuple(boxed[16, 2]) == RED
    wide.paste((0, 255, 0), (0, 0, 10, 32))
    assert (resize(wide, 32, "crop")[..., 1] == 30).all()
    assert (resize(wide, 32, "naive")[:, 1, 1] == 255).all()
    with pytest.raises(ValueError, match="unknown resize"):
        resize(wide, 32, "stretch")


def test_an_image_of_a_batch_is_prepared_as_alone():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    batch = prepare_images(pictures, TowerSettings(image_size=16))
    for picture, pixels in zip(pictures, batch["dino"], strict=True):
        alone = normalise(picture[None], "dino")[0]
        torch.testing.assert_close(pixels, alone, rtol=0, atol=0)
