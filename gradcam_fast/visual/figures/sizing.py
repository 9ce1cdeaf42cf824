"""Resizes photos and maps to the size at which a figure shows them, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from ..colormaps import check_tensor
from ..edges import outlines

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PANEL_BOX", "background", "check_photo", "resize_cells", "resize_maps", "resize_photo", "size_within",
]  # fmt: skip

# The greatest height and width of a panel, in pixels.
PANEL_BOX = 512, 384


def check_photo(photo: Tensor) -> None:
    """Raise TypeError or ValueError unless ``photo`` is a tensor (3,H,W) uint8."""
    check_tensor("photo", photo, "(3,H,W)")
    if photo.dim() != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8 or not photo.numel():
        raise ValueError(f"photo has shape {tuple(photo.shape)} and dtype {photo.dtype}; expected RGB (3,H,W) uint8")


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


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (K,h,w) as heatmaps are: bilinear with half-pixel centres; float32."""
    return interpolate(maps[None].detach().float().cpu(), size, mode="bilinear")[0]


def background(photo: Tensor, size: tuple[int, int], *, edges: bool) -> Tensor:
    """The picture (3,height,width) uint8 to lay maps over: the photo, or its outlines if ``edges``."""
    if not edges:
        return resize_photo(photo, size)
    # Enlarging blurs a photo, so edges are detected before the photo is enlarged; reducing fades outlines, so they are
    # drawn after the photo is reduced.
    if photo.shape[-2] > size[0]:
        photo = resize_photo(photo, size)
    return resize_cells(outlines(photo[None].cpu())[0].expand(3, -1, -1), size)
