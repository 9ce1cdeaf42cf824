"""Photos from paths, PIL images, arrays and tensors, as upright RGB images of 8 bits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy
import torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["MAX_PIXELS", "are_photos", "photo_tensor", "read_photo", "read_photos"]

# The most pixels of a photo file, unless said otherwise: more than any camera but a few has.
MAX_PIXELS = 120_000_000
# Values this far outside of [0,1] are rounding errors or a resize's overshoot.
SLACK = 1 / 255


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
        from .photo_decoding import decode_file

        return decode_file(photo, MAX_PIXELS, "open it with Pillow and give the image")
    if _is_image(photo):
        from PIL import ImageOps

        from .photo_decoding import as_rgb

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


def _is_image(value: Any) -> bool:
    # PIL is only asked if the program has imported it: otherwise there is no image of it.
    import sys

    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _from_array(values: Tensor, *, channels_first: bool) -> Image:
    """A tensor whose channels come first or last; last or first where only that can be."""
    from PIL import Image

    from .photo_decoding import as_rgb

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
