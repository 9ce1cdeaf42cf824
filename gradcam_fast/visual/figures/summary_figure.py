"""The figure that stands for an explanation where there is little room: its first maps, each under its class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..colormaps import colorize, default_colormap, on_unit_scale
from ..overlay import overlay
from ..placement import boxes_of
from .explanation_figures import add_colour_bar, class_titles, marked_with
from .page import Page, split_evenly
from .sizing import resize_photo, scaled, size_within

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ...explanation import Explanation

__all__ = ["summary"]

# The greatest height and width of a tile in pixels, the most tiles, and how many are side by side.
TILE_BOX = 224, 224
MOST_TILES, MOST_COLUMNS = 12, 4


def summary(explanation: Explanation, *, colormap: str | None = None, alpha: float = 0.5) -> Figure:
    """Draw the first maps of an explanation as a contact sheet: over their photos, if it has them, else alone.

    Args:
        explanation: of any batch.
        colormap, alpha: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure of at most 12 tiles; the title says how many more there are.

    Raises:
        ValueError: an empty batch, heatmaps that are no (B,H,W) or (B,K,H,W), or that are not in [0,1].
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 2))
        >>> figure = summary(gradcam_fast.explain(model, torch.rand(20, 3, 16, 16)))
        >>> len(figure.axes), figure.texts[0].get_text()
        (12, 'the first 12 of 20 heatmaps')
    """
    heatmap = explanation.heatmap.detach().float().cpu()
    heatmap = on_unit_scale(heatmap) if explanation.signed else heatmap
    colours = default_colormap(colormap, explanation.signed)
    if heatmap.dim() not in (3, 4) or not len(heatmap):
        raise ValueError(f"the heatmap has shape {tuple(heatmap.shape)}; expected (B,H,W) or (B,K,H,W), at least one")
    maps = heatmap.reshape(len(heatmap), -1, *heatmap.shape[-2:])
    titles = [class_titles(explanation, image) for image in range(min(len(maps), MOST_TILES))]
    every = [(image, k) for image in range(len(titles)) for k in range(len(titles[image]))][:MOST_TILES]
    tiles = [_tile(explanation, image, k, maps[image, k], colours, alpha) for image, k in every]
    rows = split_evenly(list(zip(tiles, every, strict=True)), MOST_COLUMNS)
    page = Page(len(rows[0]), max(tile.shape[-1] for tile in tiles))
    count = maps.shape[0] * maps.shape[1]
    if count > len(tiles):
        page.title(f"the first {len(tiles)} of {count} heatmaps")
    for row in rows:
        page.captions([_unbroken(titles[image][k]) for _, (image, k) in row])
        page.pictures([tile for tile, _ in row])
    add_colour_bar(page, colours, explanation.signed)
    return page.figure()


def _unbroken(title: str) -> str:
    """A title in which no line ends between a number and its word."""
    return title.replace(" %", "\u00a0%").replace("score ", "score\u00a0")


def _tile(explanation: Explanation, image: int, k: int, heatmap: Tensor, colormap: str, alpha: float) -> Tensor:
    """One map (3,h,w) uint8, over its photo if there is one."""
    subject = {name: part[image] for name, part in (explanation.subject or {}).items()}
    if explanation.photos is None:
        size = size_within(heatmap, TILE_BOX)
        whole = torch.nn.functional.interpolate(heatmap[None, None], size, mode="bilinear")[0, 0]
        return marked_with(colorize(whole, colormap), subject, k, (0.0, 0.0, float(size[1]), float(size[0])))
    photo = explanation.photos[image]
    size = size_within(photo, TILE_BOX)
    found = None if explanation.boxes is None else explanation.boxes[image]
    box = boxes_of(found, [(photo.shape[-2], photo.shape[-1])])[0]
    small = resize_photo(photo, size)[None]
    place_of_map = scaled(box, photo, size)
    blend: Tensor = overlay(small, heatmap[None], box=place_of_map, colormap=colormap, alpha=alpha)
    return marked_with(blend[0], subject, k, place_of_map)
