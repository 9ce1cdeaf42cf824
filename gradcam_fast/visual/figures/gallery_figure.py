"""The figure of any pictures in rows, each under its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .page import Page, split_evenly
from .sizing import PANEL_BOX, as_photo, resize_cells, resize_photo, size_within

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["gallery"]

# In pixels, of all columns together.
GALLERY_WIDTH = 1152


def gallery(pictures: Sequence[Any] | Tensor, captions: Sequence[str], *, columns: int = 3, title: str = "") -> Figure:
    """Draw pictures in rows of about equal length, each under its caption.

    Every picture fills the box of the largest one. Photos are resized smoothly; a picture less than half as high as
    its place, such as a coloured map of 7 x 7, is enlarged so that each of its pixels is a rectangle.

    Args:
        pictures: photos in any form that :class:`gradcam_fast.Preprocess` takes, of any sizes; or (B,3,h,w) uint8.
        captions: one for each picture; ``\\n`` starts a new line.
        columns: how many pictures are side by side, at most.
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
    pictures = [as_photo(picture) for picture in pictures]
    if len(pictures) != len(captions) or not len(captions):
        raise ValueError(f"len(pictures)={len(pictures)}, len(captions)={len(captions)}; give one caption per picture")
    if columns < 1:
        raise ValueError(f"columns={columns} leaves no room; give at least 1")
    rows = split_evenly(range(len(captions)), columns)
    columns = len(rows[0])
    box = PANEL_BOX[0], min(PANEL_BOX[1], GALLERY_WIDTH // columns)
    largest = size_within(max(pictures, key=lambda picture: picture.shape[-2:].numel()), box)
    resized = [_resize(picture, size_within(picture, largest)) for picture in pictures]

    page = Page(columns, max(picture.shape[-1] for picture in resized))
    if title:
        page.title(title)
    for row in rows:
        page.captions([captions[place] for place in row])
        page.pictures([resized[place] for place in row])
    return page.figure()


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return (resize_cells if size[0] >= 2 * picture.shape[-2] else resize_photo)(picture, size)
