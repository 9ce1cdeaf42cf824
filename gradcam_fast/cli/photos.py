"""Photo files as upright RGB images.

Knows nothing of networks, of explanations or of pictures to be drawn.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError("photos are read with Pillow, which is not installed; run pip install pillow") from error
try:
    import simplejpeg
except ImportError:  # Pillow reads the same pixels in a third more time
    simplejpeg = None

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

__all__ = ["UnreadablePhotoError", "pixels", "read_photo"]

_ORIENTATION, _UPRIGHT = 0x0112, 1


class UnreadablePhotoError(Exception):
    """A photo file that is missing, no photo, damaged, or of a kind whose levels are unknown; the message names it."""


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
        data = Path(path).read_bytes()
        with Image.open(BytesIO(data)) as file:
            return _plain_jpeg(file, data) or _as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not a photo in a format that Pillow reads"
    except Exception as error:  # decoders of damaged files raise everything from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UnreadablePhotoError(f"{path}: {reason}")


def _plain_jpeg(file: Image.Image, data: bytes) -> Image.Image | None:
    """The photo, if it is a whole, upright JPEG in colour: what most are, and the one kind that simplejpeg is given."""
    if simplejpeg is None or (file.format, file.mode) != ("JPEG", "RGB"):
        return None
    if file.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        return None
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data))
    except ValueError:  # whether it can be read nevertheless, and if not why, Pillow says
        return None


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
