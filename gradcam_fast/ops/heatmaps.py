"""From activations and gradients to heatmaps: the op at each layer, the mean over several, and what came out empty.

Knows nothing of models, scores or how gradients are had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .cam import cam
from .reference import normalise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gradients_vanished", "heatmaps"]


def heatmaps(
    activations: Sequence[Tensor],
    gradients: Sequence[Tensor],
    size: tuple[int, ...],
    *,
    method: str,
    normalize: str,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The heatmaps (B[,K],H,W) of one layer, or the mean of those of several, normalised again.

    Args:
        activations: (B,C,h,w) of each layer; gradients: (B[,K],C,h,w) of each; in place of h, w and H, W there may be
            one axis or three.

    Returns:
        heatmap; raw_min and raw_max (B[,K]), the extremes before (the last) normalisation; valid (B[,K]), whether all
        maps are finite and the result shows something.
    """
    each = [
        cam(a, g, size, method=method, normalize=normalize, relu=relu)
        for a, g in zip(activations, gradients, strict=True)
    ]
    heatmap, low, high = each[0]
    if len(each) > 1:
        heatmap = torch.stack([maps for maps, _, _ in each]).mean(0)
        # A layer whose map is broken has shown zeros; the mean must not look whole for it.
        broken = torch.stack([extreme for _, _, extreme in each]).isnan().any(0)
        pixels = tuple(range(-len(size), 0))
        low, high = (torch.where(broken, torch.nan, extreme(pixels)) for extreme in (heatmap.amin, heatmap.amax))
        heatmap = normalise(heatmap, low, high, normalize).masked_fill(
            broken.reshape(*broken.shape, *[1] * len(size)), 0
        )
    valid = high > low
    if normalize == "max":
        valid &= high > 0
    return heatmap.float(), low.float(), high.float(), valid


def gradients_vanished(valid: Tensor, gradients: Sequence[Tensor]) -> bool:
    """Whether no map shows anything because every gradient is zero. False off the CPU, where the host would wait."""
    if valid.device.type != "cpu" or len(valid) == 0 or not gradients:
        return False
    return not (valid.any() or any(maps.any() for maps in gradients))
