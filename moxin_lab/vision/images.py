"""Any image file to the normalised pixels of each tower.

Guarantees: an image comes out as 8-bit RGB, or `ImageError` names the file and the reason. Palette,
grey, 16-bit, CMYK and transparent images are converted, transparency over white; of an animation
the first frame is used; EXIF orientation is applied. A file that is too large is refused by the
size in its header, before it is decoded.
Out of scope: augmentation (`views.py`).
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from moxin_lab.scales.sections import TowerSettings

MAX_PIXELS = 50_000_000
NORMALISATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of each channel: ImageNet's for DINOv2, one half for SigLIP, as in
timm's configurations of the two models.
"""

Source = str | Path | Image.Image | NDArray[np.uint8]


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def open_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image. source: file, PIL image, or uint8 [H, W, 3 or 4]. Raises ImageError."""
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim != 3
            or source.shape[2] not in (3, 4)
            or not source.size
        ):
            raise ImageError(
                f"an array of {source.dtype} {source.shape} is not an image: it must be uint8 "
                "[H, W, 3 or 4] and not empty"
            )
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _rgb(source, getattr(source, "filename", "") or "image in memory", max_pixels)
    path = Path(source)
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # `max_pixels` is lower than PIL's limit and its message says more.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _rgb(image, str(path), max_pixels)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: not a readable image, or truncated ({error})") from error


def _rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{name}: {width} x {height} pixels, the image is empty")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than {max_pixels}; resize the image first"
        )
    try:
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
        # 16 bits: PIL's own conversion would clip all bright pixels to white.
        if image.mode.startswith("I"):
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
        raise ImageError(f"{name}: not a readable image, or truncated ({error})") from error


def resize(
    image: Image.Image, size: int, how: str, fill: tuple[int, int, int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """An RGB image as uint8 [size, size, 3], resampled bicubically.

    how: `naive` changes the aspect ratio; `letterbox` first pads to a square with `fill`; `crop`
    first cuts the largest square out of the middle. Raises ValueError for another `how`.
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
    """Pixels of one tower, float32 [B, 3, S, S], from uint8 [B, S, S, 3]."""
    values = torch.as_tensor(pixels).permute(0, 3, 1, 2).float() / 255  # [B, 3, S, S]
    return normalise_channels(values, name).contiguous()


def normalise_channels(values: Tensor, name: str) -> Tensor:
    """float32 [B, 3, S, S] in [0, 1] with the mean and standard deviation of one tower."""
    mean, std = (
        torch.tensor(channels, device=values.device)[:, None, None]  # [3, 1, 1]
        for channels in NORMALISATION[name]
    )
    return (values - mean) / std


def prepare_images(sources: Iterable[Source], settings: TowerSettings) -> dict[str, Tensor]:
    """Name of the tower to float32 [B, 3, S, S], for images of any sizes. Letterboxes are filled
    with the tower's mean colour. Raises ImageError.
    """
    images = [open_image(source) for source in sources]
    prepared: dict[str, Tensor] = {}
    for name in settings.which:
        red, green, blue = (int(255 * value) for value in NORMALISATION[name][0])
        squares = [
            resize(image, settings.image_size, settings.resize, (red, green, blue))
            for image in images
        ]
        prepared[name] = normalise(np.stack(squares), name)
    return prepared
