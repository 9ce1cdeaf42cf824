"""Figures that set maps of one photo beside each other: of several layers, and before and after the ReLU.

Knows nothing of models or of how the maps were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..colormaps import colorize
from ..overlay import overlay
from .page import Page, lines_of
from .sizing import PANEL, canvas, cells, check_photo, fitted, shape_of, smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["layers", "relu"]

# So many pictures lie side by side at most; more layers go on below.
COLUMNS = 6
LAYER = 256, 192


def layers(
    photo: Tensor,
    heatmaps: Sequence[Tensor],
    names: Sequence[str],
    *,
    colormap: str = "jet",
    alpha: float = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw the heatmaps of several layers side by side: above as they are, cell by cell, below over the photo.

    Args:
        photo: (3,H,W) uint8 RGB.
        heatmaps: (h,w) for each layer, floating in [0,1], at the layer's own resolution, which is told beside its name;
            ``cam`` gives it of what :func:`gradcam_fast.features.feature_maps` finds at all layers in one forward.
        names: the names of the layers.
        colormap, alpha, edges: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes that do not fit, an unknown colormap.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> figure = layers(photo, [torch.rand(14, 14), torch.rand(7, 7)], ["layer3", "layer4"])
        >>> [text.get_text().split("\\n") for text in figure.texts]
        [['photo'], ['layer3', '14 x 14'], ['layer4', '7 x 7']]
    """
    check_photo(photo)
    if len(heatmaps) != len(names) or not len(names) or any(heatmap.dim() != 2 for heatmap in heatmaps):
        shapes = ", ".join(str(tuple(heatmap.shape)) for heatmap in heatmaps) or "none"
        raise ValueError(f"heatmaps are {shapes} for {len(names)} names; expected one (h,w) for each, at least one")
    captions = [f"{name}\n{' x '.join(map(str, maps.shape))}" for name, maps in zip(names, heatmaps, strict=True)]
    return _side_by_side(photo, heatmaps, captions, LAYER, colormap=colormap, alpha=alpha, edges=edges)


def relu(photo: Tensor, raw: Tensor, *, colormap: str = "coolwarm", alpha: float = 0.5, edges: bool = False) -> Figure:
    """Draw a map before and after its ReLU, on one scale that has zero in the middle of the colormap.

    Args:
        photo: (3,H,W) uint8 RGB.
        raw: (h,w), signed, as ``explain(..., relu=False, normalize="none", size=(h, w))`` gives it: evidence against
            the class is negative. The ReLU acts at the layer's own resolution, so that is what h and w should be.
        colormap: as in :func:`gradcam_fast.overlay`, best one with a neutral middle.
        alpha, edges: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        As :func:`layers`.

    Example:
        >>> import torch
        >>> figure = relu(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[-1.0, 3.0]]))
        >>> [text.get_text().split("\\n") for text in figure.texts]
        [['photo'], ['before ReLU', '-1 to 3'], ['after ReLU', '0 to 3']]
    """
    check_photo(photo)
    if raw.dim() != 2 or not raw.is_floating_point():
        raise ValueError(f"raw is {tuple(raw.shape)} of {raw.dtype}; expected one floating map (h,w)")
    before = raw.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)
    after = before.relu()
    # A map of zeros stays at the middle.
    largest = before.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    captions = [
        f"{name} ReLU\n{float(maps.min()):.3g} to {float(maps.max()):.3g}"
        for name, maps in (("before", before), ("after", after))
    ]
    centred = [0.5 + 0.5 * (maps / largest) for maps in (before, after)]
    return _side_by_side(photo, centred, captions, PANEL, colormap=colormap, alpha=alpha, edges=edges)


def _side_by_side(
    photo: Tensor,
    heatmaps: Sequence[Tensor],
    captions: Sequence[str],
    box: tuple[int, int],
    *,
    colormap: str,
    alpha: float,
    edges: bool,
) -> Figure:
    size = shape_of(photo, box)
    under = canvas(photo, size, edges=edges)[None]
    columns: list[tuple[str, Tensor, Tensor | None]] = [("photo", fitted(photo, size), None)]
    for heatmap, caption in zip(heatmaps, captions, strict=True):
        full = smooth(heatmap[None], size)
        blended = overlay(under, full, colormap=colormap, alpha=alpha)[0]
        columns.append((caption, cells(colorize(heatmap, colormap), size), blended))
    lines = lines_of(columns, COLUMNS)
    page = Page(len(lines[0]), size[1])
    for line in lines:
        texts, maps, overlays = zip(*line, strict=True)
        page.captions(texts)
        page.pictures(maps)
        page.pictures(overlays)
    return page.figure()
