"""`moxin_lab.vision.images` and `pixels`: a file is read as an image or refused by name, and each
tower has its own normalisation.
"""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, PngImagePlugin
from timm.data import create_transform
from torchvision.transforms import functional as transforms

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision import images, pixels
from moxin_lab.vision.images import FORMATS, ImageError, open_image
from moxin_lab.vision.pixels import NORMALISATION, normalise, prepare_images, resize

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
    for picture, together in zip(pictures, batch["dino"], strict=True):
        alone = normalise(picture[None], "dino")[0]
        torch.testing.assert_close(together, alone, rtol=0, atol=0)


# ---- files that no one here wrote


def _encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _noise(width=60, height=40, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def _png(width, height, bits, colour, rows, *chunks):
    """A PNG file chunk by chunk, for what Pillow does not write."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_by_content_whatever_the_name(tmp_path, name):
    (tmp_path / "a.txt").write_bytes(_encoded(_noise(), format=name))
    assert open_image(tmp_path / "a.txt").size == (60, 40)


def test_a_postscript_file_named_jpg_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it ran"))
    script = _encoded(_noise(), format="EPS")
    (tmp_path / "a.jpg").write_bytes(script)
    with pytest.raises(ImageError, match=r"a\.jpg: not an image by its content"):
        open_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="EPS is not decoded here"):
        open_image(Image.open(io.BytesIO(script)))


@pytest.mark.parametrize("name", ["TGA", "ICO", "PPM", "JPEG2000", "PCX", "SGI", "PDF", "IM"])
def test_other_formats_are_refused_by_name(name):
    with pytest.raises(ImageError, match=r"picture 7: not an image by its content.*PNG, JPEG"):
        open_image(_encoded(_noise(), format=name), name="picture 7")


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError,
        RuntimeError,
        MemoryError,
        struct.error,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        ZeroDivisionError,
        AssertionError,
        EOFError,
        SyntaxError,
    ],
)
def test_whatever_a_decoder_raises_becomes_an_image_error_with_the_name(
    tmp_path, monkeypatch, error
):
    (tmp_path / "a.png").write_bytes(_encoded(_noise(), format="PNG"))

    def fail(*_):
        raise error("inside")

    for method in ("load", "getexif", "convert"):
        with monkeypatch.context() as patch:
            patch.setattr(PngImagePlugin.PngImageFile, method, fail)
            with pytest.raises(ImageError, match=rf"a\.png: .*{error.__name__}"):
                open_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
@pytest.mark.parametrize("share", [0.95, 0.7, 0.4])
def test_an_animation_cut_in_a_later_frame_gives_its_first_frame(name, share):
    frames = [_noise(seed=seed) for seed in range(4)]
    whole = _encoded(frames[0], format=name, save_all=True, append_images=frames[1:])
    expected = np.asarray(open_image(whole))
    cut = whole[: int(len(whole) * share)]
    assert np.array_equal(np.asarray(open_image(cut)), expected)
    with pytest.raises(ImageError):
        open_image(whole[: len(whole) // 8])  # inside the first


@pytest.mark.parametrize("moving", [True, False])
def test_an_avif_file_cut_anywhere_gives_its_whole_first_frame_or_is_refused(moving):
    frames = [_noise(seed=seed) for seed in range(3)]
    more = {"save_all": True, "append_images": frames[1:]} if moving else {}
    whole = _encoded(frames[0], format="AVIF", **more)
    expected = np.asarray(open_image(whole))
    read = 0
    for end in range(1, len(whole), 1 + len(whole) // 90):
        try:
            shown = open_image(whole[:end])
        except ImageError as error:
            assert "bytes in memory" in str(error)
            continue
        assert np.array_equal(np.asarray(shown), expected), end
        read += 1
    assert read > 40 if moving else read < 3
    size = whole.index(b"mdat") - 4  # a box that claims to be huge makes no huge file
    for claim in (b"\x7f\xff\xff\xff", b"\x04\0\0\0"):
        with pytest.raises(ImageError, match=r"truncated, it has \d+ of \d{8,10} bytes"):
            open_image(whole[:size] + claim + whole[size + 4 :])


def test_a_pil_animation_gives_its_first_frame_and_stays_where_it_was():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    moving = Image.open(
        io.BytesIO(_encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:]))
    )
    moving.seek(1)
    assert np.asarray(open_image(moving))[4, 4, 0] > 150
    assert moving.tell() == 1


def test_the_aspect_is_limited_before_anything_is_enlarged():
    for size in ((30_000, 1), (1, 201), (40_200, 200)):
        with pytest.raises(ImageError, match="one side is more than 200 times the other"):
            open_image(Image.new("RGB", size))
    assert open_image(Image.new("RGB", (200, 1))).size == (200, 1)


def test_a_letterbox_never_makes_a_larger_square_than_the_limit(monkeypatch):
    """The long side is shrunk first: the same picture but for rounding."""
    for size in ((300, 40), (40, 300), (301, 44)):
        image = _noise(*size)
        padded_first = resize(image, 32, "letterbox", (120, 110, 100))
        with monkeypatch.context() as patch:
            patch.setattr(pixels, "MAX_PIXELS", 15_000)
            shrunk_first = resize(image, 32, "letterbox", (120, 110, 100))
        assert np.abs(padded_first.astype(int) - shrunk_first).max() <= (
            0 if size == (300, 40) else 2
        )


@settings(max_examples=60, deadline=None)
@given(width=st.integers(2, 130), height=st.integers(2, 130), seed=st.integers(0, 99))
def test_resizing_equals_prismatics_transforms(width, height, seed):
    """Prismatic: timm's transform of the tower, at `resize-naive` with both sides given, at
    `letterbox` after a symmetric pad with the mean colour.
    """
    image, (mean, std) = _noise(width, height, seed), NORMALISATION["siglip"]
    reference = create_transform(
        input_size=(3, 32, 32), interpolation="bicubic", mean=mean, std=std, crop_pct=1.0
    )
    fill = tuple(int(255 * value) for value in mean)
    edge = max(width, height)
    border = (int((edge - width) / 2), int((edge - height) / 2))
    padded = transforms.pad(image, (*border, *border), fill=fill, padding_mode="constant")
    expected = {"crop": reference(image), "letterbox": reference(padded)}
    for how, values in expected.items():
        prepared = prepare_images([image], TowerSettings(image_size=32, resize=how))["siglip"][0]
        torch.testing.assert_close(prepared, values, rtol=0, atol=1e-6)
    naive = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(resize(image, 32, "naive"), naive)


def test_sixteen_bits_do_not_depend_on_the_content_and_keep_their_transparency():
    dark = Image.fromarray(np.array([[200, 100], [0, 255]], dtype=np.uint16))
    assert np.asarray(open_image(_encoded(dark, format="PNG"))).max() == 0
    assert np.asarray(open_image(_encoded(dark, format="TIFF"))).max() == 0
    both = Image.fromarray(np.array([[200, 65_535], [0, 512]], dtype=np.uint16))
    shown = np.asarray(open_image(_encoded(both, format="PNG", transparency=200)))[..., 0]
    assert shown.tolist() == [[255, 255], [0, 2]]
    deep = _png(1, 1, 16, 2, b"\0" + bytes(6), (b"tRNS", bytes(6)))
    with pytest.raises(ImageError, match="16-bit colours of which one is transparent"):
        open_image(deep)
    wide = Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32))
    with pytest.raises(ImageError, match="values from 70000 to 70000"):
        open_image(wide)
    with pytest.raises(ImageError, match="floating-point"):
        open_image(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


def test_a_colour_that_is_transparent_becomes_white():
    picture = Image.fromarray(np.array([[RED, (1, 2, 3)]], dtype=np.uint8))
    shown = np.asarray(open_image(_encoded(picture, format="PNG", transparency=RED)))
    assert shown.tolist() == [[[255, 255, 255], [1, 2, 3]]]
    kept = np.asarray(open_image(_encoded(picture, format="PNG", transparency=RED), mode="RGBA"))
    assert kept[0, :, 3].tolist() == [0, 255]


def test_an_image_is_read_from_bytes_streams_uris_and_tensors(tmp_path):
    picture = _noise()
    content = _encoded(picture, format="PNG")
    path = tmp_path / "a b.png"
    path.write_bytes(content)
    read_to_its_end = io.BytesIO(content)
    read_to_its_end.read()
    sources = [
        content,
        bytearray(content),
        memoryview(content),
        io.BytesIO(content),
        read_to_its_end,
        path,
        str(path),
        path.open("rb"),
        "data:image/png;base64," + base64.b64encode(content).decode(),
        np.asarray(picture),
        torch.tensor(np.asarray(picture)),
        picture,
    ]
    for source in sources:
        assert np.array_equal(np.asarray(open_image(source)), np.asarray(picture))


def _closed():
    image = Image.open(io.BytesIO(_encoded(_noise(), format="PNG")))
    image.close()
    return image


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * 5000, r"x\.\.\. \(5000 letters\): cannot be read"),
        ("a\0b.png", r"a\\x00b\.png: "),
        ("", "an empty path"),
        ("/", "/: not a file"),
        ("/dev/zero", "/dev/zero: not a file"),
        ("https://example.org/a.png", "addresses are not fetched"),
        ("data:image/png;base64,AAAA", "a data: URI: not an image"),
        ("data:image/png;base64,?", "not base64"),
        ("data:image/png", "no comma"),
        (b"", "0 bytes"),
        (b"no image", "8 bytes in memory: not an image"),
        (io.BytesIO(b"no image"), "a file in memory: not an image"),
        (io.StringIO("text"), "open it in binary mode"),
        (None, "type NoneType is not an image"),
        (7, "type int is not an image"),
        ([Image.new("RGB", (2, 2))], "type list is not an image.*one image at a time"),
        ({"bytes": b""}, "type dict is not an image"),
        (torch.zeros(3, 4, 4), "array of torch.float32 .* must be uint8"),
        (torch.zeros(2, 2, 2, 3, dtype=torch.uint8), "must be uint8"),
        (np.zeros((4, 4), dtype=np.uint8), "must be uint8"),
        (np.zeros((8_000, 7_000, 3), dtype=np.uint8), "7000 x 8000 pixels are more than"),
        (_closed(), "image in memory: .*closed image"),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, str | bytes) else type(value).__name__,
)
def test_what_is_no_image_is_refused_with_a_name(source, message):
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_no_image_at_all_is_an_error():
    with pytest.raises(ImageError, match="no image was given"):
        prepare_images([], TowerSettings(image_size=16))


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    content = _encoded(_noise(400, 400), format="JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    assert open_image(content).size == (400, 400)
    with pytest.raises(ImageError, match="scans of 400 x 400 pixels are too many"):
        open_image(content[:-2] + content[start:-2] * 4000)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match=r"large\.png: the file is larger than"):
        open_image(tmp_path / "large.png")


def _tiff(width, height, bits, strip, *more, photometric=1):
    """A grey little-endian TIFF file of one strip, or with the tags `more` of another layout."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1} | dict(more)
    if 322 not in tags:
        tags |= {273: 8, 278: height, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    start = 8 + len(strip)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", start) + strip + directory


def test_a_tiff_of_a_huge_tile_is_refused_before_it_is_decoded():
    def tiled(edge):
        coded = zlib.compress(bytes(edge * edge))
        more = ((259, 8), (322, edge), (323, edge), (324, 8), (325, len(coded)))
        return _tiff(4, 4, 8, coded, *more)

    assert open_image(tiled(256)).size == (4, 4)
    with pytest.raises(ImageError, match="tiles of 512 x 512 pixels are more than 100000"):
        open_image(tiled(512), max_pixels=100_000)
    with pytest.raises(ImageError, match="tiles of 512 x 512 pixels are more than 100000"):
        open_image(Image.open(io.BytesIO(tiled(512))), max_pixels=100_000)


def test_what_lies_in_segments_or_after_the_end_of_a_jpeg_is_no_scan():
    preview = b"\xff\xda" * 5_000
    content = _encoded(_noise(400, 400), format="JPEG", exif=b"Exif\0\0" + preview)
    assert images._count_scans(content, "a") == 1
    assert open_image(content + preview * 100).size == (400, 400)
    progressive = _encoded(_noise(400, 400), format="JPEG", progressive=True)
    assert images._count_scans(progressive + preview, "a") == progressive.count(b"\xff\xda") > 5


def test_a_jpeg_of_endless_segments_is_refused():
    content = _encoded(_noise(), format="JPEG")
    empty = b"\xff\xe0\x00\x02"
    assert open_image(content[:-2] + empty * 1_000 + content[-2:]).size == (60, 40)
    with pytest.raises(ImageError, match="more than 100000 segments"):
        open_image(content[:-2] + empty * 200_000)


def test_a_grey_tiff_of_12_or_16_bits_keeps_its_range_and_its_white():
    sixteen = np.array([0, 0x1234, 0xFFFF, 0x8000], dtype="<u2").tobytes()
    for photometric, expected in ((1, [0, 0x12, 255, 128]), (0, [255, 255 - 0x12, 0, 127])):
        shown = open_image(_tiff(4, 1, 16, sixteen, photometric=photometric))
        assert np.asarray(shown)[0, :, 0].tolist() == expected
    twelve = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # 0, 4095, 2048, 16
    shown = open_image(_tiff(4, 1, 12, twelve))
    assert np.asarray(shown)[0, :, 0].tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize(("bits", "row", "other"), [(2, 0b01_10_00_11, 170), (4, 0x16, 102)])
def test_a_grey_png_of_few_bits_keeps_its_transparent_value(bits, row, other):
    content = _png(2, 1, bits, 0, bytes([0, row]), (b"tRNS", struct.pack(">H", 1)))
    assert np.asarray(open_image(content))[0, :, 0].tolist() == [255, other]
    assert np.asarray(open_image(content, mode="RGBA"))[0, :, 3].tolist() == [0, 255]
    picture = Image.open(io.BytesIO(content))
    for _ in range(2):
        assert np.asarray(open_image(picture))[0, :, 0].tolist() == [255, other]


def test_the_transparent_value_of_a_loaded_picture_is_right_or_refused():
    for bits, row in ((2, 0b01_10_00_11), (4, 0x16)):
        for change in (
            lambda image: image,
            Image.Image.copy,
            lambda image: image.crop((0, 0, 2, 1)),
        ):
            picture = Image.open(
                io.BytesIO(_png(2, 1, bits, 0, bytes([0, row]), (b"tRNS", struct.pack(">H", 1))))
            )
            picture.load()
            with pytest.raises(ImageError, match="transparent value 1 is of 2, 4 or 8 bits"):
                open_image(change(picture))
    # Eight bits, where it is what it says: value 1 is there, or 0 is transparent.
    for values, key, expected in (((1, 17), 1, [255, 17]), ((0, 255), 0, [255, 255])):
        content = _png(2, 1, 8, 0, bytes([0, *values]), (b"tRNS", struct.pack(">H", key)))
        picture = Image.open(io.BytesIO(content))
        picture.load()
        assert np.asarray(open_image(picture))[0, :, 0].tolist() == expected
    deep = _png(1, 1, 16, 2, bytes(7), (b"tRNS", struct.pack(">HHH", 300, 0, 0)))
    picture = Image.open(io.BytesIO(deep))
    picture.load()
    with pytest.raises(ImageError, match="16-bit colours of which one is transparent"):
        open_image(picture)
