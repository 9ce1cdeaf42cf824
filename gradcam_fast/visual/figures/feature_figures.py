"""The figure of a layer's strongest channels: their feature maps, gradients and weights among those of all channels.

Knows nothing of models, photos or how a heatmap is made of channels, but for Grad-CAM's weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..colormaps import colorize
from .page import Page, lines_of
from .sizing import cells, shape_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["channels"]

# Side by side: at most, and at least, so that the histogram has room.
COLUMNS, FEWEST = 6, 3
BOX = 160, 160
CHART = 280


def channels(
    activations: Tensor,
    gradients: Tensor,
    *,
    count: int = 12,
    colormap: str = "viridis",
    gradient_colormap: str = "coolwarm",
) -> Figure:
    """Draw the strongest channels of a layer, above their feature maps, below the gradients of the score at them.

    The weight of a channel is its pooled gradient (Selvaraju et al., ICCV 2017, equation 1); the strongest channels are
    those whose weighted feature maps are greatest on average, ``abs(weight) * mean(abs(activations))``. Below them lies
    the histogram of the weights of all channels, in which the drawn ones are marked.

    Every feature map is coloured from its own least to its own greatest value, which are told; gradients have zero in
    the middle of their colormap, and their own greatest magnitude, told too, at its ends.

    Args:
        activations, gradients: (C,h,w) of one image and one class, as
            :func:`gradcam_fast.features.feature_maps` finds them.
        count: how many channels.
        colormap, gradient_colormap: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes that do not fit, an unknown colormap.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> activations, gradients = torch.ones(3, 2, 2), torch.tensor([0.0, -2.0, 1.0]).view(3, 1, 1).expand(3, 2, 2)
        >>> figure = channels(activations, gradients, count=2)
        >>> [text.get_text().splitlines()[0] for text in figure.texts[1:5]]
        ['channel 1', 'channel 2', 'weight -2', 'weight 1']
    """
    if activations.dim() != 3 or activations.shape != gradients.shape or not activations.numel():
        raise ValueError(
            f"activations is {tuple(activations.shape)} and gradients {tuple(gradients.shape)}; expected (C,h,w) of "
            "both, of one image and one class"
        )
    if count < 1:
        raise ValueError(f"count={count} asks for no channel; give at least 1")
    activations, gradients = (_finite(maps) for maps in (activations, gradients))
    weights = gradients.mean((1, 2))
    strength = weights.abs() * activations.abs().mean((1, 2))
    strongest = strength.topk(min(count, len(strength))).indices.tolist()

    size = shape_of(activations, BOX)
    lines = lines_of(strongest, COLUMNS)
    page = Page(max(FEWEST, len(lines[0])), size[1])
    which = f"{len(strongest)} strongest" if len(strongest) > 1 else "strongest"
    page.title(f"the {which} of {len(weights)} channels: feature maps; below, gradients and their mean, the weight")
    for line in lines:
        page.captions([f"channel {k}\n{_range(activations[k])}" for k in line])
        page.pictures([cells(colorize(_stretched(activations[k]), colormap), size) for k in line])
        page.captions([f"weight {float(weights[k]):.3g}\nup to ±{float(gradients[k].abs().max()):.3g}" for k in line])
        page.pictures([cells(colorize(_centred(gradients[k]), gradient_colormap), size) for k in line])
    page.title(f"pooled gradients of all {len(weights)} channels")
    page.chart(CHART, lambda axes: _histogram(axes, weights, weights[strongest]))
    return page.figure()


def _finite(maps: Tensor) -> Tensor:
    return maps.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)


def _range(maps: Tensor) -> str:
    return f"{float(maps.min()):.3g} to {float(maps.max()):.3g}"


def _stretched(maps: Tensor) -> Tensor:
    low, high = maps.aminmax()
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def _centred(maps: Tensor) -> Tensor:
    return 0.5 + 0.5 * (maps / maps.abs().max().clamp(min=torch.finfo(maps.dtype).tiny))


def _histogram(axes: Axes, weights: Tensor, drawn: Tensor) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.hist(weights.tolist(), bins=min(80, max(10, len(weights) // 8)), color="0.6")
    for weight in drawn.tolist():
        axes.axvline(weight, ymax=0.06, color="tab:red", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set_xlabel("pooled gradient; red: the channels above", fontsize=9)
    axes.set_ylabel("channels", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
