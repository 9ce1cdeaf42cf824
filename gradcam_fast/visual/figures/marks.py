"""Draws boxes of objects and outlines of masks into pictures, white with a dark rim, so that they show on anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import max_pool2d

if TYPE_CHECKING:
    from torch import Tensor

    from ..placement import Box

__all__ = ["with_box", "with_outline"]

WHITE, DARK = 255, 0
# In pixels: the white line, and the rim on either side of it.
LINE, RIM = 2, 1


def with_box(picture: Tensor, box: Box) -> Tensor:
    """A picture (3,h,w) uint8 with a box, (left, top, right, bottom) in its pixels; parts outside are cut off.

    Example:
        >>> import torch
        >>> gray = torch.full((3, 12, 12), 128, dtype=torch.uint8)
        >>> with_box(gray, (3, 3, 9, 9))[0, 6].tolist()
        [128, 0, 255, 255, 0, 128, 128, 0, 255, 255, 0, 128]
    """
    height, width = picture.shape[-2:]
    left, top, right, bottom = map(round, box)
    half = LINE // 2
    inside = _rectangle(height, width, (left + half, top + half, right - half, bottom - half))
    lines = _rectangle(height, width, (left - half, top - half, right + half, bottom + half)) & ~inside
    return _drawn(picture, lines)


def with_outline(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture (3,h,w) uint8 with the outline of a mask (h,w) of booleans.

    Example:
        >>> import torch
        >>> gray = torch.full((3, 1, 8), 128, dtype=torch.uint8)
        >>> with_outline(gray, torch.arange(8)[None] >= 4)[0, 0].tolist()
        [128, 128, 0, 255, 255, 0, 128, 128]
    """
    return _drawn(picture, _grown(mask, 1) & _grown(~mask, 1))


def _rectangle(height: int, width: int, edges: tuple[int, int, int, int]) -> Tensor:
    left, top, right, bottom = edges
    inside = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return inside


def _grown(mask: Tensor, by: int) -> Tensor:
    return max_pool2d(mask[None].float(), 2 * by + 1, 1, by)[0] > 0


def _drawn(picture: Tensor, lines: Tensor) -> Tensor:
    rim = _grown(lines, RIM) & ~lines
    return picture.masked_fill(rim, DARK).masked_fill(lines, WHITE)
