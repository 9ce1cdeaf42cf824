"""Photos from paths, PIL images, arrays and tensors, as upright RGB images of 8 bits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy
import torch

from .exceptions import UnreadablePhotoError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["are_photos", "as_rgb", "photo_tensor", "read_photo", "read_photos"]

# Values this far outside of [0,1] are rounding errors or a resize's overshoot.
SLACK = 1 / 255
# 16-bit levels to 8 bits; Pillow's own conversion clips at 255, which turns almost every 16-bit photo white.
_TO_8_BITS = ((numpy.arange(65536) + 128) // 257).astype(numpy.uint8)


def are_photos(value: Any) -> bool:
    """Whether a value can only be photos, and no input of a model: paths, PIL images, arrays, or a list of these.

    Tensors are inputs of a model, or photos if they are uint8; that depends on who asks.
    """
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(are_photos, value))
    return isinstance(value, (str, os.PathLike, numpy.ndarray)) or _is_image(value)


def read_photos(photos: Any) -> list[Image]:
    """Read one photo or several, of any sizes: a photo as `read_photo` takes it, a list of them, or a batch.

    Args:
        photos: a photo, a list of photos, a tensor (B,C,H,W) or an array (B,H,W,C).

    Raises:
        TypeError, ValueError: something that is no photo.
        UnreadablePhotoError: a file that is no photo.
    """
    if isinstance(photos, (torch.Tensor, numpy.ndarray)) and photos.ndim == 4:
        photos = list(photos)
    if not isinstance(photos, (list, tuple)):
        photos = [photos]
    if not photos:
        raise ValueError("photos is empty; give at least one photo")
    return [read_photo(photo) for photo in photos]


def read_photo(photo: Any) -> Image:
    """Read a photo as an upright RGB image of 8 bits.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grayscale is scaled to 8 bits, and of an
    animation the first frame is taken.

    Args:
        photo: a path; a PIL image; an array (H,W), (H,W,1), (H,W,3) or (H,W,4); or a tensor (H,W), (1,H,W), (3,H,W) or
            (4,H,W): uint8, or floating in [0,1].

    Raises:
        TypeError, ValueError: something that is no photo.
        UnreadablePhotoError: a file that is no photo.
    """
    if isinstance(photo, (str, os.PathLike)):
        return _read_file(photo)
    if _is_image(photo):
        from PIL import ImageOps

        return as_rgb(ImageOps.exif_transpose(photo))
    if isinstance(photo, torch.Tensor):
        return _from_array(photo.detach().cpu(), channels_first=True)
    if isinstance(photo, numpy.ndarray):
        return _from_array(torch.from_numpy(numpy.array(photo)), channels_first=False)
    raise TypeError(
        f"a photo is a {type(photo).__name__}; give a path, a PIL image, an array (H,W,3) or a tensor (3,H,W)"
    )


def photo_tensor(photo: Image) -> Tensor:
    """An image as a tensor (3,H,W), or (1,H,W) if it is gray, uint8 on the CPU."""
    pixels = torch.from_numpy(numpy.array(photo))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def as_rgb(photo: Image) -> Image:
    """A PIL image of any mode as RGB of 8 bits; transparency is laid over white.

    Raises:
        ValueError: pixel values of unknown scale.
    """
    if photo.mode == "F":
        raise ValueError("floating-point pixel values of unknown scale; save it with 8 or 16 bits")
    if photo.mode.startswith("I"):
        return _from_16_bits(photo)
    if photo.has_transparency_data:
        from PIL import Image

        photo = photo if photo.mode == "RGBA" else photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def _from_16_bits(photo: Image) -> Image:
    from PIL import Image

    levels = numpy.asarray(photo)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("32-bit pixel values of unknown scale; save it with 8 or 16 bits")
    return Image.fromarray(_TO_8_BITS[levels]).convert("RGB")


def _is_image(value: Any) -> bool:
    # PIL is only asked if the program has imported it: otherwise there is no image of it.
    import sys

    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _read_file(path: str | os.PathLike[str]) -> Image:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("photos are read with Pillow, which is not installed; run pip install pillow") from error

    try:
        with Image.open(path) as file:
            return as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not a photo in a format that Pillow reads"
    except Exception as error:  # decoders of damaged files raise everything from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise UnreadablePhotoError(f"{os.fspath(path)}: {reason}")


def _from_array(values: Tensor, *, channels_first: bool) -> Image:
    """A tensor whose channels come first or last; last or first where only that can be."""
    from PIL import Image

    shape, kind = tuple(values.shape), "tensor" if channels_first else "array"
    expected = "(H,W), (1,H,W), (3,H,W)" if channels_first else "(H,W), (H,W,1), (H,W,3)"
    if values.dim() == 2:
        values = values[None]
    elif values.dim() != 3 or not {shape[0], shape[-1]} & {1, 3, 4}:
        raise ValueError(f"a photo is {'an' if kind == 'array' else 'a'} {kind} of shape {shape}; expected {expected}")
    elif shape[0 if channels_first else -1] not in (1, 3, 4):
        channels_first = not channels_first
        values = values if channels_first else values.permute(2, 0, 1)
    elif not channels_first:
        values = values.permute(2, 0, 1)
    if not values.numel():
        raise ValueError(f"a photo has shape {shape}, without a pixel; expected {expected}")
    pixels = _as_bytes(values)
    if len(pixels) == 1:
        pixels = pixels.expand(3, -1, -1)
    image = Image.fromarray(numpy.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    return as_rgb(image)


def _as_bytes(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise TypeError(f"a photo has dtype {values.dtype}; give uint8, or floating values in [0,1]")
    low, high = (float(extreme) for extreme in values.float().aminmax())
    if not (-SLACK <= low and high <= 1 + SLACK):
        raise ValueError(
            f"a photo ranges from {low:.3g} to {high:.3g}; give floating values in [0,1]: photos before they are "
            "normalised, and 0..255 levels divided by 255 or as uint8"
        )
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8)
