"""Images as squares, and squares as the normalised pixels of each tower.

Guarantees: `resize` equals Prismatic's three transforms; an image of a batch is prepared as alone;
no square of more than `images.MAX_PIXELS` is made on the way.
Out of scope: opening images (`images.py`), augmentation (`views.py`).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from moxin_lab.scales.sections import TowerSettings
from moxin_lab.vision.images import MAX_PIXELS, ImageError, Source, open_image

NORMALISATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of each channel: ImageNet's for DINOv2, one half for SigLIP, as in
timm's configurations of the two models.
"""
BICUBIC = transforms.InterpolationMode.BICUBIC


def resize(
    image: Image.Image, size: int, how: str, fill: tuple[int, int, int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """An RGB image as uint8 [size, size, 3], resampled bicubically as in Prismatic.

    how: `naive` changes the aspect ratio; `crop` resizes the shorter side to `size` and cuts out
    the middle; `letterbox` first pads to a square with `fill`, equally on both sides, so that an
    odd difference leaves one pixel. Raises ValueError for another `how`.
    """
    if how == "naive":
        square = transforms.resize(image, [size, size], BICUBIC)
    elif how == "crop":
        square = _cropped(image, size)
    elif how == "letterbox":
        square = _cropped(_padded(image, size, fill), size)
    else:
        raise ValueError(f"unknown resize {how!r}: available are naive, letterbox, crop")
    return np.array(square)


def _cropped(image: Image.Image, size: int) -> Image.Image:
    return transforms.center_crop(transforms.resize(image, size, BICUBIC), [size, size])


def _padded(image: Image.Image, size: int, fill: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square.

    A square of more than MAX_PIXELS is never made: the long side is resized to `size` before the
    other side is padded. Resampling is separable, so the result differs in its rounding alone.
    """
    width, height = image.size
    edge = max(width, height)
    padding = [(edge - width) // 2, (edge - height) // 2]
    if edge * edge <= MAX_PIXELS:
        return transforms.pad(image, padding, fill)
    shrunk = transforms.resize(image, [size, width] if height == edge else [height, size], BICUBIC)
    return transforms.resize(transforms.pad(shrunk, padding, fill), [size, size], BICUBIC)


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
    with the tower's mean colour. Raises ImageError, also for no image at all.
    """
    squares: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in settings.which}
    for source in sources:
        image = open_image(source)
        for name, done in squares.items():
            red, green, blue = (int(255 * value) for value in NORMALISATION[name][0])
            done.append(resize(image, settings.image_size, settings.resize, (red, green, blue)))
    if not all(squares.values()):
        raise ImageError("no image was given")
    return {name: normalise(np.stack(done), name) for name, done in squares.items()}
