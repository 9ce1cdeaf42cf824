"""Photos read from a file or from its bytes, as upright RGB images, and made ready for a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from ..photo_decoding import decode_bytes, decode_file
from ..photos import MAX_PIXELS, photo_tensor
from .pictures import shown_part
from .results import LoadedPhoto

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..preprocess import Preprocess

__all__ = ["load_photo", "pixels", "read_photo"]

_WAY_OUT = "raise --max-pixels"


def read_photo(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS, *, name: str = "photo") -> Image:
    """Read a photo of any common kind as upright 8-bit RGB, as :func:`gradcam_fast.photo_decoding.decode_file` does.

    Args:
        source: the path of a file, or the bytes of one.
        max_pixels: larger photos are refused; of them only the header is read.
        name: what an error calls a photo that came as bytes; a file is called by its path.

    Raises:
        UnreadablePhotoError: in one sentence, which photo and why.
    """
    if isinstance(source, bytes):
        return decode_bytes(source, max_pixels, _WAY_OUT, name=name)
    return decode_file(source, max_pixels, _WAY_OUT)


def load_photo(
    photo: Image, preprocess: Preprocess, *, path: Path | str, name: str, longest: int | None = None
) -> LoadedPhoto:
    """A photo that was read, with the network's input for it.

    Args:
        path, name: as in `LoadedPhoto`.
        longest: the longest side of the pixels that are kept for pictures; None keeps none.
    """
    box = preprocess.seen_box(photo.size)
    shown = None if longest is None else numpy.asarray(shown_part(photo, box, longest))
    return LoadedPhoto(path, name, photo.size, box, shown, preprocess(photo).images)


def pixels(photo: Image) -> Tensor:
    """An RGB photo as a (3,H,W) uint8 tensor on the CPU."""
    return photo_tensor(photo)
