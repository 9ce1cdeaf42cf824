"""The figure of any pictures in rows, each under its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .page import Page
from .sizing import PANEL_BOX, check_photo, resize_cells, resize_photo, size_within

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["gallery"]

# In pixels, of all columns together.
GALLERY_WIDTH = 1152


def gallery(
    pictures: Sequence[Tensor] | Tensor, captions: Sequence[str], *, columns: int = 3, title: str = ""
) -> Figure:
    """Draw pictures in rows, each under its caption.

    Every picture fills the box of the largest one. Photos are resized smoothly; a picture less than half as high as
    its place, such as a coloured map of 7 x 7, is enlarged so that each of its pixels is a rectangle.

    Args:
        pictures: (3,h,w) uint8 RGB, of any sizes.
        captions: one for each picture; ``\\n`` starts a new line.
        columns: how many pictures are side by side.
        title: a line above the pictures.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError, ValueError: other shapes or dtypes, not one caption for each picture, fewer than one column.
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
        raise ValueError(f"len(pictures)={len(pictures)}, len(captions)={len(captions)}; give one caption per picture")
    if columns < 1:
        raise ValueError(f"columns={columns} leaves no room; give at least 1")
    columns = min(columns, len(captions))
    box = PANEL_BOX[0], min(PANEL_BOX[1], GALLERY_WIDTH // columns)
    largest = size_within(max(pictures, key=lambda picture: picture.shape[-2:].numel()), box)
    resized = [_resize(picture, size_within(picture, largest)) for picture in pictures]

    page = Page(columns, max(picture.shape[-1] for picture in resized))
    if title:
        page.title(title)
    for start in range(0, len(resized), columns):
        page.captions(captions[start : start + columns])
        page.pictures(resized[start : start + columns])
    return page.figure()


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return (resize_cells if size[0] >= 2 * picture.shape[-2] else resize_photo)(picture, size)
