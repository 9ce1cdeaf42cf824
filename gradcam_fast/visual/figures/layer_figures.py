"""Figures of what layers compute: heatmaps of several layers, a map before and after ReLU, the strongest channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..colormaps import colorize
from ..overlay import overlay
from ..placement import boxes_of, whole
from .page import Page, split_evenly
from .sizing import PANEL_BOX, as_photo, background, check_covers, resize_cells, resize_photo, scaled, size_within

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["channels", "layers", "relu"]

# Pictures side by side, at most; the histogram of channels needs the width of the fewest.
MOST_COLUMNS, FEWEST_COLUMNS = 6, 3
# Height and width, in pixels, of one picture and of the histogram.
LAYER_BOX = 256, 192
CHANNEL_BOX = 160, 160
HISTOGRAM_HEIGHT = 280


def layers(
    photo: Any,
    heatmaps: Sequence[Tensor],
    names: Sequence[str],
    *,
    box: Any = None,
    colormap: str = "jet",
    alpha: float = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw the heatmaps of several layers side by side: above cell by cell, below over the photo.

    Args:
        photo: RGB (3,H,W) uint8, or a photo in another form that :class:`gradcam_fast.Preprocess` takes.
        heatmaps: for each layer (h,w), floating in [0,1], at the layer's own resolution, which the figure shows below
            the layer's name. Get them from :func:`gradcam_fast.cam`, with the activations and gradients that
            :func:`gradcam_fast.features.feature_maps` returns for all layers of one forward.
        names: the names of the layers.
        box: the part of the photo that the network saw, as in :func:`gradcam_fast.overlay`; None: all of it.
        colormap, alpha, edges: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError, ValueError: shapes, dtypes or ranges that do not fit, an unknown colormap.
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> figure = layers(photo, [torch.rand(14, 14), torch.rand(7, 7)], ["layer3", "layer4"])
        >>> [text.get_text().split("\\n") for text in figure.texts]
        [['photo'], ['layer3', '14 x 14'], ['layer4', '7 x 7']]
    """
    photo = as_photo(photo)
    if len(heatmaps) != len(names) or not len(names) or any(heatmap.dim() != 2 for heatmap in heatmaps):
        shapes = ", ".join(str(tuple(heatmap.shape)) for heatmap in heatmaps) or "none"
        raise ValueError(
            f"heatmaps have shapes {shapes} and len(names) is {len(names)}; expected one (h,w) per name, at least one"
        )
    captions = [f"{name}\n{' x '.join(map(str, maps.shape))}" for name, maps in zip(names, heatmaps, strict=True)]
    return _beside_photo(photo, heatmaps, captions, LAYER_BOX, box, colormap=colormap, alpha=alpha, edges=edges)


def relu(
    photo: Any,
    raw: Tensor,
    *,
    box: Any = None,
    colormap: str = "coolwarm",
    alpha: float = 0.5,
    edges: bool = False,
) -> Figure:
    """Draw a map before and after its ReLU, on one scale that has zero in the middle of the colormap.

    Args:
        photo: RGB (3,H,W) uint8, or a photo in another form that :class:`gradcam_fast.Preprocess` takes.
        raw: (h,w), floating, negative where the map speaks against the class: the heatmap that
            ``explain(..., relu=False, normalize="none", size=(h, w))`` gives. As the ReLU comes before upsampling, h
            and w should be the layer's own resolution.
        box: as in :func:`layers`.
        colormap: as in :func:`gradcam_fast.overlay`, best one with a neutral middle.
        alpha, edges: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, an unknown colormap.
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch
        >>> figure = relu(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[-1.0, 3.0]]))
        >>> [text.get_text().split("\\n") for text in figure.texts]
        [['photo'], ['before ReLU', '-1 to 3'], ['after ReLU', '0 to 3']]
    """
    photo = as_photo(photo)
    if raw.dim() != 2 or not raw.is_floating_point():
        raise ValueError(f"raw has shape {tuple(raw.shape)} and dtype {raw.dtype}; expected one floating map (h,w)")
    before = _finite(raw)
    after = before.relu()
    captions = [f"before ReLU\n{_range(before)}", f"after ReLU\n{_range(after)}"]
    centred = [_centred(before, before), _centred(after, before)]  # one scale for both
    return _beside_photo(photo, centred, captions, PANEL_BOX, box, colormap=colormap, alpha=alpha, edges=edges)


def channels(
    activations: Tensor,
    gradients: Tensor,
    *,
    count: int = 12,
    colormap: str = "viridis",
    gradient_colormap: str = "coolwarm",
) -> Figure:
    """Draw the strongest channels of a layer: above their feature maps, below the gradients of the score.

    The weight of a channel is its pooled gradient (Selvaraju et al., ICCV 2017, equation 1). The strongest channels are
    those whose weighted feature maps are greatest on average, ``abs(weight) * mean(abs(activations))``. Below them is a
    histogram of the weights of all channels, in which those of the drawn channels are marked.

    The colours of every feature map range from its own least to its own greatest value. Gradients have zero in the
    middle of their colormap and their own greatest magnitude at its ends. The captions state these values.

    Args:
        activations: (C,h,w) of one image, as :func:`gradcam_fast.features.feature_maps` returns them.
        gradients: (C,h,w) of one class, likewise.
        count: how many channels.
        colormap, gradient_colormap: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes that do not fit, a count below 1, an unknown colormap.
        ImportError: matplotlib or OpenCV is not installed.

    Example:
        >>> import torch
        >>> activations, gradients = torch.ones(3, 2, 2), torch.tensor([0.0, -2.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
        >>> figure = channels(activations, gradients, count=2)
        >>> [text.get_text().splitlines()[0] for text in figure.texts[1:5]]
        ['channel 1', 'channel 2', 'weight -2', 'weight 1']
    """
    if activations.dim() != 3 or activations.shape != gradients.shape or not activations.numel():
        raise ValueError(
            f"activations has shape {tuple(activations.shape)} and gradients {tuple(gradients.shape)}; expected "
            "(C,h,w) for both, of one image and one class"
        )
    if count < 1:
        raise ValueError(f"count={count} asks for no channel; give at least 1")
    activations, gradients = _finite(activations), _finite(gradients)
    weights = gradients.mean((1, 2))
    strength = weights.abs() * activations.abs().mean((1, 2))
    strongest = strength.topk(min(count, len(strength))).indices.tolist()

    size = size_within(activations, CHANNEL_BOX)
    rows = split_evenly(strongest, MOST_COLUMNS)
    page = Page(max(FEWEST_COLUMNS, len(rows[0])), size[1])
    ranking = f"{len(strongest)} strongest" if len(strongest) > 1 else "strongest"
    page.title(f"the {ranking} of {len(weights)} channels: feature maps; below, gradients and their mean, the weight")
    for row in rows:
        page.captions([f"channel {k}\n{_range(activations[k])}" for k in row])
        page.pictures([resize_cells(colorize(_stretched(activations[k]), colormap), size) for k in row])
        page.captions([f"weight {float(weights[k]):.3g}\nup to ±{float(gradients[k].abs().max()):.3g}" for k in row])
        page.pictures([resize_cells(colorize(_centred(gradients[k]), gradient_colormap), size) for k in row])
    page.title(f"pooled gradients of all {len(weights)} channels")
    page.chart(HISTOGRAM_HEIGHT, lambda axes: _histogram(axes, weights, weights[strongest]))
    return page.figure()


def _beside_photo(
    photo: Tensor,
    heatmaps: Sequence[Tensor],
    captions: Sequence[str],
    limits: tuple[int, int],
    box: Any,
    *,
    colormap: str,
    alpha: float,
    edges: bool,
) -> Figure:
    """The photo and, to its right, each heatmap under its caption: above cell by cell, below over the photo."""
    size = size_within(photo, limits)
    sides = photo.shape[-2], photo.shape[-1]
    seen = boxes_of(box, [sides])[0]
    behind = background(photo, size, edges=edges)[None]
    columns: list[tuple[str, Tensor, Tensor | None]] = [("photo", resize_photo(photo, size), None)]
    for heatmap, caption in zip(heatmaps, captions, strict=True):
        if seen is None:
            check_covers(heatmap, photo)
        blend = overlay(behind, heatmap[None].cpu(), box=scaled(seen, photo, size), colormap=colormap, alpha=alpha)[0]
        # A map of a part of the photo keeps its own proportions.
        cells = size if seen in (None, whole(sides)) else size_within(heatmap, limits)
        columns.append((caption, resize_cells(colorize(heatmap, colormap), cells), blend))
    rows = split_evenly(columns, MOST_COLUMNS)
    page = Page(len(rows[0]), size[1])
    for row in rows:
        texts, maps, blends = zip(*row, strict=True)
        page.captions(texts)
        page.pictures(maps)
        page.pictures(blends)
    return page.figure()


def _finite(maps: Tensor) -> Tensor:
    """Float32 on the CPU, without a graph; NaN and Inf are 0."""
    return maps.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)


def _range(maps: Tensor) -> str:
    return f"{float(maps.min()):.3g} to {float(maps.max()):.3g}"


def _stretched(maps: Tensor) -> Tensor:
    """On [0,1] from the least to the greatest value."""
    low, high = maps.aminmax()
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def _centred(maps: Tensor, scale: Tensor | None = None) -> Tensor:
    """On [0,1] with zero at 0.5, divided by the greatest magnitude of ``scale`` or else of the maps themselves."""
    largest = (maps if scale is None else scale).abs().max().clamp(min=torch.finfo(maps.dtype).tiny)
    return 0.5 + 0.5 * (maps / largest)


def _histogram(axes: Axes, weights: Tensor, marked: Tensor) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.hist(weights.tolist(), bins=min(80, max(10, len(weights) // 8)), color="0.6")
    for weight in marked.tolist():
        axes.axvline(weight, ymax=0.06, color="tab:red", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_xlabel("pooled gradient; red: the channels above", fontsize=9)
    axes.set_ylabel("channels", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
