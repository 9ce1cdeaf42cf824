"""Pictures of any kind in rows, each under its caption.

Knows nothing of heatmaps or explanations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .page import Page
from .sizing import PANEL, cells, check_photo, fitted, shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["gallery"]

# What all columns together may take, in pixels.
WIDTH = 1152


def gallery(
    pictures: Sequence[Tensor] | Tensor, captions: Sequence[str], *, columns: int = 3, title: str = ""
) -> Figure:
    """Draw pictures in rows, each under its caption.

    All take the room of the largest: photos smoothly, and what is much smaller, such as a coloured map of 7 x 7, with
    every one of its pixels a square.

    Args:
        pictures: (3,h,w) uint8 RGB, of any sizes.
        captions: one for each; a line ends at ``\\n``.
        columns: how many side by side.
        title: a line above all.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: other shapes or dtypes, or not one caption for each picture.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> figure = gallery(torch.zeros(5, 3, 60, 80, dtype=torch.uint8), ["a", "b", "c", "d", "e"], columns=5)
        >>> len(figure.axes)
        5
    """
    for picture in pictures:
        check_photo(picture)
    if len(pictures) != len(captions) or not len(captions):
        raise ValueError(f"there are {len(pictures)} pictures and {len(captions)} captions; give one for each")
    if columns < 1:
        raise ValueError(f"columns={columns} leaves no room; give at least 1")
    columns = min(columns, len(captions))
    room = PANEL[0], min(PANEL[1], WIDTH // columns)
    box = shape_of(max(pictures, key=lambda picture: picture.shape[-2:].numel()), room)
    drawn = [_drawn(picture, shape_of(picture, box)) for picture in pictures]

    page = Page(columns, max(picture.shape[-1] for picture in drawn))
    if title:
        page.title(title)
    for start in range(0, len(drawn), columns):
        page.captions(captions[start : start + columns])
        page.pictures(drawn[start : start + columns])
    return page.figure()


def _drawn(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return (cells if size[0] >= 2 * picture.shape[-2] else fitted)(picture, size)
