"""Resizes photos and maps to the size at which a figure shows them, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from ...photos import photo_tensor, read_photo
from ..edges import outlines
from ..placement import WAY_OUT, covers_whole_photo, whole

if TYPE_CHECKING:
    from torch import Tensor

    from ..placement import Box

__all__ = [
    "PANEL_BOX", "as_photo", "background", "check_covers", "resize_cells", "resize_photo", "scaled",
    "size_within",
]  # fmt: skip

# The greatest height and width of a panel, in pixels.
PANEL_BOX = 512, 384


def as_photo(photo: Any) -> Tensor:
    """A photo in any form that :class:`gradcam_fast.Preprocess` takes, as (3,H,W) uint8 on the CPU.

    Raises:
        TypeError, ValueError: something that is no photo.
    """
    if isinstance(photo, torch.Tensor) and photo.dim() == 3 and photo.dtype == torch.uint8 and len(photo) == 3:
        if photo.numel():
            return photo.cpu()
    return photo_tensor(read_photo(photo))


def check_covers(maps: Tensor, photo: Tensor) -> None:
    """Raise ValueError unless maps (...,h,w) have the proportions of the photo, so that they may cover all of it."""
    size, sides = tuple(maps.shape[-2:]), tuple(photo.shape[-2:])
    if not covers_whole_photo(size, sides):
        raise ValueError(
            f"a heatmap of {size[0]} x {size[1]} has other proportions than its photo of {sides[0]} x {sides[1]} "
            f"pixels, so that it cannot cover all of it; {WAY_OUT}"
        )


def scaled(box: Box | None, photo: Tensor, size: tuple[int, int]) -> Box:
    """A box in pixels of the photo as one in pixels of the photo resized to (height, width); None is all of it."""
    if box is None:
        return whole(size)
    y, x = size[0] / photo.shape[-2], size[1] / photo.shape[-1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def size_within(photo: Tensor, box: tuple[int, int] = PANEL_BOX) -> tuple[int, int]:
    """The greatest (height, width) within the box that keeps the photo's proportions; no side is below 1."""
    sides = photo.shape[-2:]
    scale = min(limit / side for limit, side in zip(box, sides, strict=True))
    height, width = (max(1, round(side * scale)) for side in sides)
    return height, width


def resize_photo(photo: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a photo (3,H,W) uint8 smoothly (bicubic, antialiased)."""
    photo = photo.cpu()
    if tuple(photo.shape[-2:]) == size:
        return photo
    resized = interpolate(photo[None].float(), size, mode="bicubic", antialias=True)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def resize_cells(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a picture (3,h,w) uint8 so that each pixel becomes a rectangle; to a smaller size, smoothly."""
    if any(after < before for after, before in zip(size, picture.shape[-2:], strict=True)):
        return resize_photo(picture, size)
    return interpolate(picture[None].cpu(), size, mode="nearest-exact")[0]


def background(photo: Tensor, size: tuple[int, int], *, edges: bool) -> Tensor:
    """The picture (3,height,width) uint8 to lay maps over: the photo, or its outlines if ``edges``."""
    if not edges:
        return resize_photo(photo, size)
    # Enlarging blurs a photo, so edges are detected before the photo is enlarged; reducing fades outlines, so they are
    # drawn after the photo is reduced.
    if photo.shape[-2] > size[0]:
        photo = resize_photo(photo, size)
    return resize_cells(outlines(photo[None].cpu())[0].expand(3, -1, -1), size)
