"""Runs a preprocessing beside the original it was read from, on test photos, and refuses what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from ..preprocess import Preprocess

__all__ = ["probe_photo", "verify"]

# (width, height), with odd differences, so that half pixels are rounded; one is smaller than any network's input.
SIZES = (331, 246), (203, 318), (45, 37)
# Of 255 levels: Pillow and torch round differently when they resize. A shift by half a pixel gives 20 and more.
TOLERANCE = 4


def probe_photo(width: int, height: int) -> Image:
    """Smooth colours with hard-edged squares of several sizes, the same in every run."""
    from PIL import Image

    y, x = numpy.mgrid[0:height, 0:width]
    smooth = [numpy.sin(x / 17 + k) * numpy.cos(y / 13 - k) * 90 + 128 for k in range(3)]
    squares = sum(((x // side + y // side) % 2) * 40.0 for side in (11, 29))
    colours = numpy.stack([numpy.clip(channel + squares - 40, 0, 255) for channel in smooth], -1)
    return Image.fromarray(colours.astype(numpy.uint8))


@torch.no_grad()
def verify(preprocess: Preprocess, original: Callable[[Any], Any], title: str) -> None:
    """Raise ValueError unless both make the same input of the test photos, but for rounding."""
    for size in SIZES:
        photo, of_photo = probe_photo(*size), f"of a photo of {size[0]} x {size[1]} pixels"
        ours = preprocess(photo).images[0]
        try:
            result = original(photo)
        except Exception as error:  # whatever the user's transforms raise
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{title} makes no input {of_photo} ({reason})") from error
        if not isinstance(result, (torch.Tensor, numpy.ndarray)):
            raise ValueError(
                f"{title} makes a {type(result).__name__} {of_photo}, where a network takes a tensor; give the "
                "transforms with one that makes it, such as ToTensor()"
            )
        theirs = torch.as_tensor(result, device="cpu").float()
        if theirs.shape != ours.shape:
            raise ValueError(
                f"{title} makes an input of shape {tuple(theirs.shape)} {of_photo}, where its settings say "
                f"{tuple(ours.shape)}; give the numbers: Preprocess(size, mean=..., std=..., fit=...)"
            )
        # In levels of the photo.
        std = torch.tensor(preprocess.std, dtype=torch.float32, device="cpu")[:, None, None]
        difference = float(((ours - theirs) * std).abs().max()) * 255
        if difference > TOLERANCE:
            raise ValueError(
                f"{title} makes other pixels of a test photo than its settings say, by up to {difference:.0f} of 255 "
                "levels; give the numbers: Preprocess(size, mean=..., std=..., fit=...)"
            )
