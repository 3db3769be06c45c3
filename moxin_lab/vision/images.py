"""Any image file to the pixels that each tower wants.

Guarantees: an image comes out as 8-bit RGB (palette, grey, 16-bit, CMYK and transparent ones are
converted, transparency over white; of an animation the first frame; turned as its EXIF says), or
`ImageError` names the file and why not. A file is refused by its header's size before it is
decoded. Does not: augment (tower_training.py).
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 50_000_000
NORMALISATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation a channel: ImageNet's for DINOv2, one half for SigLIP (timm's
configurations of the two names).
"""

Source = str | Path | Image.Image | NDArray[np.uint8]


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def open_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image. source: file, PIL image, or uint8 [H, W, 3]. Raises ImageError."""
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim != 3
            or source.shape[2] not in (3, 4)
            or not source.size
        ):
            raise ImageError(
                f"an array of {source.dtype} {source.shape} is not an image: uint8 [H, W, 3 or 4], not empty"
            )
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _rgb(source, getattr(source, "filename", "") or "image in memory", max_pixels)
    path = Path(source)
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # our own limit is lower and says more
            with Image.open(path) as image:
                return _rgb(image, str(path), max_pixels)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: not a readable image, or cut off ({error})") from error


def _rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{name}: {width} x {height} pixels, nothing to see")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than {max_pixels}; make it smaller first"
        )
    try:
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(
            "I"
        ):  # 16 bits: PIL's own conversion would clip everything bright to white
            values = np.asarray(image).astype(np.int64).clip(0, 65_535)
            image = Image.fromarray((values >> (8 if values.max() > 255 else 0)).astype(np.uint8))
        elif image.mode == "F":
            raise ImageError(
                f"{name}: floating-point pixels have no known range; save it with 8 or 16 bits"
            )
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except (OSError, SyntaxError, EOFError) as error:
        raise ImageError(f"{name}: not a readable image, or cut off ({error})") from error


def resize(
    image: Image.Image, size: int, how: str, fill: tuple[int, int, int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]. naive: warped to a square; letterbox: padded to one with `fill` first;
    crop: shorter edge to `size`, middle kept. Bicubic. Raises ValueError for another `how`.
    """
    width, height = image.size
    if how == "letterbox":
        edge = max(width, height)
        square = Image.new("RGB", (edge, edge), fill)
        square.paste(image, ((edge - width) // 2, (edge - height) // 2))
        image = square
    elif how == "crop":
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge))
    elif how != "naive":
        raise ValueError(f"unknown resize {how!r}: available are naive, letterbox, crop")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image)


def normalise(pixels: NDArray[np.uint8] | Tensor, name: str) -> Tensor:
    """float32 [B, 3, S, S] for one tower, of uint8 [B, S, S, 3]."""
    values = torch.as_tensor(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(numbers, device=values.device)[:, None, None]
        for numbers in NORMALISATION[name]
    )
    return ((values - mean) / std).contiguous()


def prepare_image(source: Source, settings: Any) -> dict[str, Tensor]:
    """Tower to float32 [3, S, S]. settings: image_size, resize, which. Raises ImageError."""
    return {name: pixels[0] for name, pixels in prepare_images([source], settings).items()}


def prepare_images(sources: Any, settings: Any) -> dict[str, Tensor]:
    """Tower to float32 [B, 3, S, S], for images of any sizes. Letterboxes are filled with the
    tower's own mean.
    """
    images = [open_image(source) for source in sources]
    found = {}
    for name in settings.which:
        red, green, blue = (int(255 * value) for value in NORMALISATION[name][0])
        squares = [
            resize(image, settings.image_size, settings.resize, (red, green, blue))
            for image in images
        ]
        found[name] = normalise(np.stack(squares), name)
    return found
