"""Photo files as upright RGB images, and those as the tensor a network expects.

Knows nothing of networks, of explanations or of pictures to be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError("photos are read with Pillow, which is not installed; run pip install pillow") from error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from torch import Tensor

__all__ = ["Preprocessing", "UnreadablePhotoError", "pixels", "read_photo"]


class UnreadablePhotoError(Exception):
    """A photo file that is missing, no photo, damaged, or of a kind whose levels are unknown; the message names it."""


@dataclass(frozen=True)
class Preprocessing:
    """How photos become a network's input: the whole photo squeezed to one size, bicubic, then normalised.

    Attributes:
        size: (height, width) of the input in pixels.
        mean, std: per channel on the [0,1] scale; the input is ``(rgb - mean) / std``.

    Example:
        >>> from PIL import Image
        >>> preprocess = Preprocessing(size=(2, 2), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> preprocess([Image.new("RGB", (8, 4), (255, 0, 0))])[0, :, 0, 0]
        tensor([ 1., -1., -1.])
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, photos: Sequence[Image.Image]) -> Tensor:
        """Photos in RGB, of any sizes, as one (B,3,height,width) float32 tensor on the CPU."""
        height, width = self.size
        squeezed = [pixels(photo.resize((width, height), Image.Resampling.BICUBIC)) for photo in photos]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (torch.stack(squeezed).float() / 255 - mean) / std


def pixels(photo: Image.Image) -> Tensor:
    """An RGB photo as a (3,H,W) uint8 tensor on the CPU."""
    return torch.from_numpy(numpy.array(photo)).permute(2, 0, 1)


def read_photo(path: str | PathLike[str]) -> Image.Image:
    """Read a photo of any common kind as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grayscale is scaled to 8 bits, and of an
    animation the first frame is taken.

    Raises:
        UnreadablePhotoError: in one sentence, which file and why.
    """
    try:
        with Image.open(path) as file:
            return _as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not a photo in a format that Pillow reads"
    except Exception as error:  # decoders of damaged files raise everything from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UnreadablePhotoError(f"{path}: {reason}")


def _as_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode == "F":
        raise ValueError("floating-point levels without a known white; save it with 8 or 16 bits")
    if photo.mode.startswith("I"):
        return _from_16_bits(photo)
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def _from_16_bits(photo: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling, which turns almost every 16-bit photo white.
    levels = numpy.asarray(photo, dtype=numpy.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("32-bit levels without a known white; save it with 8 or 16 bits")
    return Image.fromarray(((levels + 128) // 257).astype(numpy.uint8)).convert("RGB")
