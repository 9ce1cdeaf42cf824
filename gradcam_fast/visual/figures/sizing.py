"""Photos and maps at the size at which a figure shows them, on the CPU, where figures are drawn.

Knows nothing of pages, colours or what the pictures show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from ..colormaps import check_tensor
from ..edges import outlines

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PANEL", "canvas", "cells", "check_photo", "fitted", "shape_of", "smooth"]

# Height and width, in pixels, that no panel exceeds.
PANEL = 512, 384


def check_photo(photo: Tensor) -> None:
    """Refuse what is no photo (3,H,W) uint8."""
    check_tensor("photo", photo, "(3,H,W)")
    if photo.dim() != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8 or not photo.numel():
        raise ValueError(f"photo is {tuple(photo.shape)} of {photo.dtype}; expected RGB, (3,H,W) of torch.uint8")


def shape_of(photo: Tensor, box: tuple[int, int] = PANEL) -> tuple[int, int]:
    """The greatest (height, width) of the photo's proportions within a box, at least one pixel each."""
    sides = photo.shape[-2:]
    scale = min(limit / side for limit, side in zip(box, sides, strict=True))
    height, width = (max(1, round(side * scale)) for side in sides)
    return height, width


def fitted(photo: Tensor, size: tuple[int, int]) -> Tensor:
    """A photo (3,H,W) uint8 at another size, smooth."""
    photo = photo.cpu()
    if tuple(photo.shape[-2:]) == size:
        return photo
    larger = interpolate(photo[None].float(), size, mode="bicubic", antialias=True)[0]
    return larger.round_().clamp_(0, 255).to(torch.uint8)


def canvas(photo: Tensor, size: tuple[int, int], *, edges: bool) -> Tensor:
    """What maps are laid over, (3,H,W) uint8: the photo at another size, or its outlines."""
    if not edges:
        return fitted(photo, size)
    # Made larger first, a photo would be too soft to have edges; of one made smaller afterwards, they would fade.
    if photo.shape[-2] > size[0]:
        photo = fitted(photo, size)
    return cells(outlines(photo[None].cpu())[0].expand(3, -1, -1), size)


def cells(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (3,h,w) uint8 at another size: enlarged, each of its pixels is a rectangle; reduced, it is smooth."""
    if any(after < before for after, before in zip(size, picture.shape[-2:], strict=True)):
        return fitted(picture, size)
    return interpolate(picture[None].cpu(), size, mode="nearest-exact")[0]


def smooth(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (K,h,w) at another size, bilinear with half-pixel centres as heatmaps are, (K,height,width)."""
    return interpolate(maps[None].detach().float().cpu(), size, mode="bilinear")[0]
