"""Images of every format that Pillow writes, changed at random: each is read or refused by name.

pytest -m fuzz tests/fuzz/test_images.py                # 20,000 images, minutes, seed printed
python -m tests.fuzz.shards images --shards 4           # the same, in four processes
"""

import io
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision.images import FORMATS, ImageError, open_image
from moxin_lab.vision.pixels import prepare_images
from tests.fuzz.measured import Call, change_bytes, check, run_in_child

CALLS = 20_000
LEAST = {"accepted": 0.1, "ImageError": 0.5}
WIDTH, HEIGHT = 31, 22
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "YCbCr")
OTHER_FORMATS = ("EPS", "ICO", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "PDF", "IM", "XBM", "MSP")
OPTIONS = {
    "PNG": ({}, {"optimize": True}, {"compress_level": 0}, {"transparency": 3}),
    "JPEG": ({}, {"progressive": True}, {"quality": 5}, {"subsampling": 0}),
    "WEBP": ({}, {"lossless": True}, {"quality": 5}),
    "TIFF": tuple(
        {"compression": name}
        for name in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "group4")
    ),
}


@cache
def whole_files() -> dict[str, bytes]:
    """Name to a file: each format, mode and option that Pillow can write, still and moving."""
    rng = np.random.default_rng(0)
    frames = [
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)) for _ in range(3)
    ]
    deep = Image.fromarray(rng.integers(0, 65_535, (HEIGHT, WIDTH), dtype=np.uint16))
    exif = Image.Exif()
    files = {}
    for name in (*FORMATS, *OTHER_FORMATS):
        for mode in MODES:
            for number, options in enumerate(OPTIONS.get(name, ({},))):
                image = deep if mode == "I;16" else frames[0].convert(mode)
                exif[274] = 1 + len(files) % 8  # the orientation
                if name in ("PNG", "JPEG", "WEBP", "AVIF"):
                    options = {**options, "exif": exif}
                if content := _saved(image, name, options):
                    files[f"{name} {mode} {number}"] = content
    for name in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"):
        moving = {"save_all": True, "append_images": frames[1:], "duration": 50}
        files[f"{name} moving"] = _saved(frames[0], name, moving)
    return files


def _saved(image: Image.Image, name: str, options: dict) -> bytes:
    """The file, or nothing where the format has no such mode or option."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name, **options)
    except (OSError, ValueError, KeyError, TypeError):
        return b""
    return buffer.getvalue()


def campaign(count: int, seed: int, folder: Path) -> Iterator[Call]:
    rng, files = random.Random(seed), whole_files()
    listed = [name for name in files if name.split()[0] in (*FORMATS, "MPO")]
    others = [name for name in files if name not in listed]
    path = folder / "image.jpg"  # the name says nothing about the content
    for _ in range(count):
        group = listed if rng.random() < 0.9 else others
        name, other = rng.choice(group), rng.choice(list(files.values()))
        how, content = change_bytes(files[name], rng, other)
        resize = rng.choice(("naive", "crop", "letterbox"))

        def read(content: bytes = content, resize: str = resize) -> None:
            path.write_bytes(content)
            pixels = np.asarray(open_image(path))
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
            again = np.asarray(open_image(io.BytesIO(content)))
            assert np.array_equal(pixels, again), "a stream gives other pixels than its file"
            towers = prepare_images([path], TowerSettings(image_size=16, resize=resize))
            assert all(bool(values.isfinite().all()) for values in towers.values())

        yield Call(f"{name}: {how}", read, (ImageError,), str(path))


def test_every_whole_file_of_a_listed_format_is_read():
    files = whole_files()
    assert len(files) > 90
    for name, content in files.items():
        if name.split()[0] in (*FORMATS, "MPO"):
            assert sorted(open_image(content).size) == [HEIGHT, WIDTH], name
        else:
            with pytest.raises(ImageError, match="not an image by its content"):
                open_image(content)


def test_six_hundred_changed_images_are_read_or_refused_by_name(tmp_path):
    check(run_in_child(campaign, 600, tmp_path, seed=0), 600, LEAST)


@pytest.mark.fuzz
def test_twenty_thousand_changed_images_are_read_or_refused_by_name(tmp_path):
    check(run_in_child(campaign, CALLS, tmp_path), CALLS, LEAST)


def refused(count: int, seed: int, folder: Path) -> Iterator[Call]:
    """What must make a campaign fail, one each."""

    def raises() -> None:
        raise RuntimeError("no documented exception")

    def hangs() -> None:
        began = time.process_time()
        while time.process_time() < began + 2.1:
            pass

    def swells() -> None:
        bytearray(b"x") * (2**30 + 2**28)

    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    yield Call("one", (raises, hangs, swells, dies)[seed], (ImageError,))


@pytest.mark.parametrize(
    ("seed", "reason"),
    [(0, "RuntimeError"), (1, r"2\.1 s"), (2, "MiB"), (3, "call 0.* ended without an answer")],
)
def test_a_campaign_sees_other_exceptions_time_memory_and_crashes(tmp_path, seed, reason):
    with pytest.raises(AssertionError, match=reason):
        run_in_child(refused, 1, tmp_path, seed=seed)
