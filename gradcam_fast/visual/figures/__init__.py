"""Figures for people, drawn with matplotlib (the extra ``viz``): photo, heatmap and overlay, and all the other ones.

Knows nothing of models or of photo files: it is given pixels, maps and explanations. The other figures have modules of
their own and are found here too: ``layers`` and ``relu``, ``channels``, ``classes``, ``gallery``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..colormaps import colorize
from ..overlay import overlay
from .captions import class_titles
from .class_figures import classes
from .feature_figures import channels
from .figure_files import is_own, save
from .gallery import gallery
from .map_figures import layers, relu
from .page import Page
from .sizing import canvas, check_photo, fitted, shape_of, smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ...explanation import Explanation

__all__ = ["channels", "classes", "explained", "gallery", "is_own", "layers", "panels", "relu", "save"]

HEADER = "photo", "heatmap", "overlay"


def panels(
    photo: Tensor,
    heatmap: Tensor,
    titles: Sequence[str],
    *,
    colormap: str = "jet",
    alpha: float | Tensor = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw photo, heatmap and overlay side by side, one row for each heatmap, each row under its title.

    The photo keeps its proportions. Every panel is drawn pixel for pixel at one common size, at most 384 x 512, so that
    a place in the photo is at the same place in the heatmap and in the overlay.

    Args:
        photo: (3,H,W) uint8 RGB.
        heatmap: (K,h,w), floating in [0,1]; it covers the whole photo, whatever its own resolution.
        titles: K titles.
        colormap, alpha, edges: as in :func:`gradcam_fast.overlay`; a tensor ``alpha`` has the heatmap's shape.

    Returns:
        A matplotlib figure: for :func:`save`, or a notebook to show.

    Raises:
        ValueError: shapes that do not fit, an unknown colormap.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 192, 384, dtype=torch.uint8)
        >>> figure = panels(photo, torch.rand(1, 7, 7), ["a class, 50.0 %"])
        >>> [int(side) for side in figure.bbox.size]
        [1200, 268]
    """
    _check(photo, heatmap, titles, alpha)
    page = Page(3, shape_of(photo)[1])
    page.captions(HEADER)
    _rows(page, photo, heatmap, titles, colormap=colormap, alpha=alpha, edges=edges)
    return page.figure()


def explained(
    photos: Sequence[Tensor] | Tensor,
    explanation: Explanation,
    names: Sequence[str] | None = None,
    *,
    colormap: str = "jet",
    alpha: float = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw an explanation as :func:`panels` does: a row for each photo and class, with the class's name and scores.

    Args:
        photos: the batch that was explained, as people see it: B photos (3,H,W) uint8 RGB, of any sizes.
        explanation: what :func:`gradcam_fast.explain` returned for it.
        names: the name of each class; None leaves their numbers.
        colormap, alpha, edges: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        As :func:`panels`.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 2))
        >>> photos = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
        >>> figure = explained(photos, gradcam_fast.explain(model, photos / 255), ["cat", "dog"])
        >>> len(figure.axes)
        6
    """
    heatmap = explanation.heatmap
    if len(photos) != len(heatmap) or not len(heatmap) or heatmap.dim() not in (3, 4):
        raise ValueError(
            f"there are {len(photos)} photos for heatmaps {tuple(heatmap.shape)}; expected B photos and (B,H,W) or "
            "(B,K,H,W), at least one"
        )
    heatmaps = [maps.reshape(-1, *maps.shape[-2:]) for maps in heatmap]
    titles = [class_titles(explanation, image, names) for image in range(len(heatmaps))]
    for photo, maps, each in zip(photos, heatmaps, titles, strict=True):
        _check(photo, maps, each, alpha)
    page = Page(3, max(shape_of(photo)[1] for photo in photos))
    page.captions(HEADER)
    for photo, maps, each in zip(photos, heatmaps, titles, strict=True):
        _rows(page, photo, maps, each, colormap=colormap, alpha=alpha, edges=edges)
    return page.figure()


def _check(photo: Tensor, heatmap: Tensor, titles: Sequence[str], alpha: float | Tensor) -> None:
    check_photo(photo)
    if heatmap.dim() != 3 or len(heatmap) != len(titles) or not titles:
        raise ValueError(
            f"heatmap has shape {tuple(heatmap.shape)} and there are {len(titles)} titles; "
            "expected (K,h,w) and K titles, at least one"
        )
    if isinstance(alpha, torch.Tensor) and alpha.shape != heatmap.shape:
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}; expected the heatmap's {tuple(heatmap.shape)}")


def _rows(
    page: Page,
    photo: Tensor,
    heatmap: Tensor,
    titles: Sequence[str],
    *,
    colormap: str,
    alpha: float | Tensor,
    edges: bool,
) -> None:
    size = shape_of(photo)
    heatmap = smooth(heatmap, size)
    under = canvas(photo, size, edges=edges)[None]
    photo = fitted(photo, size)
    weight = smooth(alpha, size)[None] if isinstance(alpha, torch.Tensor) else alpha
    blended = overlay(under, heatmap[None], colormap=colormap, alpha=weight)[0]
    for title, colors, blend in zip(titles, colorize(heatmap, colormap), blended, strict=True):
        page.title(title)
        page.pictures((photo, colors, blend))
