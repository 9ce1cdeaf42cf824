"""The figure of the most probable classes of a photo.

Knows nothing of heatmaps or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .captions import most_probable
from .page import Page
from .sizing import check_photo, fitted, shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["classes"]

# So wide, in pixels, most names of classes fit on a line.
NARROWEST = 320


def classes(photo: Tensor, logits: Tensor, names: Sequence[str] | None = None, *, count: int = 5) -> Figure:
    """Draw a photo and below it its most probable classes, with a bar as long as each is probable.

    Args:
        photo: (3,H,W) uint8 RGB.
        logits: (N,), of the photo.
        names: the name of each class; None leaves their numbers.
        count: how many classes.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes that do not fit.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> figure = classes(photo, torch.tensor([0.0, 1.0]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.texts]
        ['73.1 %  dog (1)', '26.9 %  cat (0)']
    """
    check_photo(photo)
    if logits.dim() != 1 or not len(logits) or (names is not None and len(names) != len(logits)):
        given = "no names" if names is None else f"{len(names)} names"
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, with {given}; expected (N,), of one photo, and N names"
        )
    size = shape_of(photo)
    page = Page(1, max(NARROWEST, size[1]))
    page.gap()
    page.pictures([fitted(photo, size)])
    for line, probability in zip(*most_probable(logits, names, count), strict=True):
        page.title(line)
        page.bar(probability)
    return page.figure()
