"""Any image as 8 bits, whoever made it.

Guarantees: an image comes out with 8 bits, or `ImageError` names the image and the reason; no other
exception leaves `open_image`. The format is recognised by content, never by a file's name, and only
the decoders of `FORMATS` run, so no file starts another program. Size and aspect are checked by the
header, before pixels are decoded. Palette, grey, 16-bit, CMYK and transparent images are converted,
transparency over white; EXIF orientation is applied. Of an animation the first frame is used, also
if the file was cut in a later one.
Out of scope: squares and towers (`pixels.py`); fetching images from the network; the bits of a PIL
image that was loaded before, where Pillow no longer says them and its transparent colour (of 16
bits, at most 255) does not tell.
"""

import base64
import binascii
import io
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""Pillow's names of the formats that are opened; JPEG includes MPO. Of the others some run a
program (EPS: Ghostscript), some have no signature (TGA), and image-text data sets use none.
"""
MAX_PIXELS = 50_000_000
"""Largest width x height. Our choice: decoding and converting it takes less than 1 GiB."""
MAX_ASPECT = 200
"""Largest ratio of the two sides; source: Qwen2-VL's `smart_resize` in transformers."""
MAX_BYTES = 8 * MAX_PIXELS
"""Largest file: that of an uncompressed 16-bit RGBA image."""
MAX_FILLED = 2**26
"""Largest AVIF file, its missing end included, of which the first frame is looked for."""
TILE_WIDTH, TILE_LENGTH, BITS_PER_SAMPLE, PHOTOMETRIC = 322, 323, 258, 262
"""Tags of TIFF 6.0, whose PHOTOMETRIC 0 means that 0 is white."""
JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""A marker that begins a segment with a length, or ends the image. Within coded data 0xff is
followed by 0 or by a restart marker, d0 to d7.
"""
MAX_SEGMENTS = 100_000
"""Most segments of a JPEG file; MAX_BYTES of full ones are 6,000."""
MAX_DECODED = 10 * MAX_PIXELS
"""Largest width x height x scans of a JPEG file: each scan, of which a hostile file has thousands,
visits every pixel. A progressive file has about ten.
"""
NAME_LETTERS = 160
"""Letters of an image's name that a message shows."""

Source: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8] | Tensor
)
"""A path, a `data:` URI, a file's bytes, an open binary file, a PIL image, or uint8
[H, W, 3 or 4].
"""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def open_image(
    source: Source, *, max_pixels: int = MAX_PIXELS, name: str = "", mode: str = "RGB"
) -> Image.Image:
    """An image of 8 bits. name: what a message calls the image (default: its path, or its kind).
    mode: `RGB`, or `RGBA` to keep transparency.

    Raises ImageError for whatever is no image of FORMATS, is damaged, empty, or beyond the limits.
    """
    name = name or _name(source)
    try:
        if isinstance(source, np.ndarray | Tensor):
            return _converted(_from_array(source, name, max_pixels), name, mode)
        if isinstance(source, Image.Image):
            return _from_image(source, name, max_pixels, mode)
        content = _first_frame(_read(source, name))
        if missing := _missing_bytes(content, name):
            return _from_cut(content, missing, name, max_pixels, mode)
        return _from_file(content, name, max_pixels, mode)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{name}: not an image by its content, or damaged in its header; read are "
            f"{', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # a decoder raises anything over damaged bytes
        raise ImageError(
            f"{name}: not a readable image, or truncated ({type(error).__name__}: {error})"
        ) from error


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        name = str(source)
        name = "a data: URI" if name.startswith("data:") else name or "an empty path"
    elif isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "image in memory")
    else:
        name = _kind(source)
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= NAME_LETTERS else f"{name[:NAME_LETTERS]}... ({len(name)} letters)"


def _kind(source: Any) -> str:
    if isinstance(source, np.ndarray | Tensor):
        return f"an array of {source.dtype} {tuple(source.shape)}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes in memory"
    if callable(getattr(source, "read", None)):
        return str(getattr(source, "name", "a file in memory"))
    return f"an object of type {type(source).__name__}"


def _from_array(array: NDArray[Any] | Tensor, name: str, max_pixels: int) -> Image.Image:
    values = array.detach().cpu() if isinstance(array, Tensor) else array
    if (
        values.dtype not in (np.uint8, torch.uint8)
        or values.ndim != 3
        or values.shape[2] not in (3, 4)
        or 0 in values.shape
    ):
        raise ImageError(f"{name} is not an image: it must be uint8 [H, W, 3 or 4] and not empty")
    _check_size((values.shape[1], values.shape[0]), name, max_pixels)
    return Image.fromarray(np.asarray(values))


def _from_image(image: Image.Image, name: str, max_pixels: int, mode: str) -> Image.Image:
    """The first frame of a PIL image, which is left at its own frame."""
    _check_header(image, name, max_pixels)
    if not isinstance(image, ImageFile.ImageFile):
        return _converted(image, name, mode)
    if image.tile and image.format not in (*FORMATS, "MPO"):
        raise ImageError(
            f"{name}: {image.format} is not decoded here; read are {', '.join(FORMATS)}. Pass "
            "image.convert('RGB') if you trust the file"
        )
    frame = image.tell()
    if not frame:
        return _converted(image, name, mode)
    image.seek(0)
    try:
        _check_header(image, name, max_pixels)
        return _converted(image, name, mode)
    finally:
        image.seek(frame)


def _from_file(content: bytes, name: str, max_pixels: int, mode: str) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_header(image, name, max_pixels)
        _check_scans(content, image, name)
        return _converted(image, name, mode)


def _from_cut(content: bytes, missing: int, name: str, max_pixels: int, mode: str) -> Image.Image:
    """The first frame of an AVIF file that lacks its end, which its decoder wants to be there: one
    that is the same whatever the missing bytes are was whole.
    """
    zeros, ones = (
        _from_file(content + fill * missing, name, max_pixels, mode) for fill in (b"\0", b"\xff")
    )
    if zeros.tobytes() != ones.tobytes():
        raise ImageError(f"{name}: truncated in its first frame, {missing} bytes are missing")
    return zeros


def _read(source: Any, name: str) -> bytes:
    """The bytes of a file, of a `data:` URI, or the given ones."""
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif isinstance(source, str) and source.startswith("data:"):
        content = _data_uri(source, name)
    elif isinstance(source, str | os.PathLike):
        content = _read_file(source, name)
    elif callable(getattr(source, "read", None)):
        if source.seekable():
            source.seek(0)
        content = source.read(MAX_BYTES + 1)
        if not isinstance(content, bytes):
            raise ImageError(f"{name}: a file of text; open it in binary mode")
    else:
        raise ImageError(
            f"{name} is not an image: give a path, bytes, an open binary file, a PIL image or an "
            "array, one image at a time"
        )
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name}: the file is larger than {MAX_BYTES} bytes")
    if not content:
        raise ImageError(f"{name}: the file is empty, it has 0 bytes")
    return content


def _read_file(path: str | os.PathLike[str], name: str) -> bytes:
    try:
        state = Path(path).stat()
        if not stat.S_ISREG(state.st_mode):
            raise ImageError(f"{name}: not a file")
        if state.st_size > MAX_BYTES:
            raise ImageError(f"{name}: the file is larger than {MAX_BYTES} bytes")
        return Path(path).read_bytes()
    except FileNotFoundError:
        address = " (addresses are not fetched)" if "://" in str(path)[:9] else ""
        raise ImageError(f"{name}: no such file{address}") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from None


def _data_uri(uri: str, name: str) -> bytes:
    """RFC 2397: `data:image/png;base64,...`."""
    header, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"{name}: it has no comma between its type and its content")
    content = unquote_to_bytes(body)
    if not header.endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ImageError(f"{name}: its content is not base64 ({error})") from None


def _first_frame(content: bytes) -> bytes:
    """A WebP animation that was cut off, up to the end of its first frame; other files unchanged.

    libwebp refuses to open a file that lacks its end. Source: developers.google.com/speed/webp,
    "RIFF container": chunks of a name, a length of 4 bytes, and a content of even length.
    """
    if content[:4] + content[8:16] != b"RIFFWEBPVP8X" or _length(content, 4) + 8 <= len(content):
        return content
    start = 12
    while start + 8 <= len(content):
        length = _length(content, start + 4)
        end = start + 8 + length + length % 2
        if content[start : start + 4] == b"ANMF" and end <= len(content):
            return b"RIFF" + (end - 8).to_bytes(4, "little") + content[8:end]
        start = end
    return content


def _missing_bytes(content: bytes, name: str) -> int:
    """How many bytes an AVIF file lacks by the lengths of its boxes. Source: ISO/IEC 14496-12, 4.2:
    a length of 4 bytes, a name, and for a length of 1 one of 8 bytes.
    """
    start = 0
    if content[4:8] != b"ftyp" or b"avi" not in content[8:64]:
        return 0
    while start + 16 <= len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        if length == 1:
            length = int.from_bytes(content[start + 8 : start + 16], "big")
        if length < 8:  # 0: up to the end of the file
            return 0
        start += length
    if start > max(len(content), MAX_FILLED):
        raise ImageError(f"{name}: truncated, it has {len(content)} of {start} bytes")
    return max(0, start - len(content))


def _length(content: bytes, start: int) -> int:
    return int.from_bytes(content[start : start + 4], "little")


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    """The size of an image, and of a TIFF file's tiles: a tile is decoded whole, also if most of it
    is outside the image. A strip never has more rows than the image.
    """
    _check_size(image.size, name, max_pixels)
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0)
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: its tiles of {width} x {height} pixels are more than {max_pixels}; save the "
            "image again with smaller tiles"
        )


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width} x {height} pixels, the image is empty")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than {max_pixels}; resize the image first"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(
            f"{name}: {width} x {height} pixels, one side is more than {MAX_ASPECT} times the "
            "other; crop the image first"
        )


def _check_scans(content: bytes, image: Image.Image, name: str) -> None:
    if image.format not in ("JPEG", "MPO"):
        return
    scans = _count_scans(content, name)
    if scans > 1 and scans * image.width * image.height > MAX_DECODED:
        raise ImageError(
            f"{name}: {scans} scans of {image.width} x {image.height} pixels are too many to "
            "decode; save the image again"
        )


def _count_scans(content: bytes, name: str) -> int:
    """Scans of a JPEG file up to its end-of-image marker, as a decoder meets them: previews in
    segments and whatever a camera appended are none of them. Source: ITU-T T.81, B.1.1.
    """
    scans, segments, start = 0, 0, 2
    while found := JPEG_SEGMENT.search(content, start):
        marker, start = content[found.start() + 1], found.end()
        if marker == 0xD9:  # end of image
            break
        scans += marker == 0xDA
        segments += 1
        if segments > MAX_SEGMENTS:
            raise ImageError(f"{name}: more than {MAX_SEGMENTS} segments; save the image again")
        start += max(2, int.from_bytes(content[start : start + 2], "big"))
    return scans


def _converted(image: Image.Image, name: str, mode: str) -> Image.Image:
    """8 bits, upright; in RGB transparency over white. The image's size was checked."""
    if image.mode == "F":
        raise ImageError(
            f"{name}: floating-point pixels have no known range; save it with 8 or 16 bits"
        )
    key = image.info.get("transparency")
    coded = str([tile.args for tile in getattr(image, "tile", ())])
    if isinstance(key, tuple) and (";16" in coded or max(key) > 255):
        raise ImageError(
            f"{name}: 16-bit colours of which one is transparent; save it with 8 bits or with alpha"
        )
    if isinstance(key, int) and (few := re.search(r"'L;([24])'", coded)) and image.format == "PNG":
        # Pillow scales pixels of 2 and 4 bits to 8, and leaves the transparent one as it is coded.
        image.info["transparency"] = key * (255 // (2 ** int(few[1]) - 1))
    elif isinstance(key, int) and image.format in ("PNG", None) and coded == "[]":
        _check_loaded_key(image, key, name)
    image.load()
    if image.mode.startswith("I"):
        image = _from_sixteen_bits(image, key, name)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode == "RGBA":
            return image
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert(mode)


def _check_loaded_key(image: Image.Image, key: int, name: str) -> None:
    """Raises ImageError where the transparent value of a loaded PNG may be one of 2 or 4 bits."""
    if image.mode != "L" or not 0 < key < 16:
        return
    values = np.asarray(image)
    if not (values % 17).any():  # 4 bits are scaled by 17, 2 bits by 85
        raise ImageError(
            f"{name}: Pillow no longer says whether its transparent value {key} is of 2, 4 or 8 "
            "bits once the picture is loaded: pass the file instead"
        )


def _from_sixteen_bits(image: Image.Image, key: Any, name: str) -> Image.Image:
    """The upper 8 of 16 bits, or of a TIFF file's 12, whatever values occur: PIL's own conversion
    would clip all bright pixels to white. key: the value that is transparent.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ImageError(
            f"{name}: values from {low} to {high} have no known range; save it with 8 or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})
    bits = min(16, *tags.get(BITS_PER_SAMPLE, (16,)))  # of 32 the range was checked
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:
        grey = 255 - grey
    if isinstance(key, int):
        grey[values == key] = 255
    result = Image.fromarray(grey)
    result.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return result
