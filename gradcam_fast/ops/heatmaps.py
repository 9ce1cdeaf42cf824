"""Heatmaps of one or several layers: calls the op at each layer, averages their maps, and marks the valid ones."""

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
    """Compute the heatmaps (B[,K],H,W) of one layer; of several layers the mean of their heatmaps, normalised again.

    Args:
        activations: for each layer (B,C,h,w); series have one axis in place of h and w, volumes three.
        gradients: for each layer (B[,K],C,h,w).
        size: the sides of the heatmap, as many as the activations have after C.
        method, normalize, relu: as in :func:`gradcam_fast.cam`.

    Returns:
        heatmap; raw_min and raw_max (B[,K]), the extremes before the (last) normalisation; valid (B[,K]), whether the
        maps of all layers are finite and the heatmap is not flat.
    """
    per_layer = [
        cam(a, g, size, method=method, normalize=normalize, relu=relu)
        for a, g in zip(activations, gradients, strict=True)
    ]
    heatmap, low, high = per_layer[0]
    if len(per_layer) > 1:
        heatmap = torch.stack([layer_heatmap for layer_heatmap, _, _ in per_layer]).mean(0)
        # The heatmap of a layer that is not finite is zeros; the mean with another layer's would hide that.
        broken = torch.stack([layer_high for _, _, layer_high in per_layer]).isnan().any(0)
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
    """Tell whether no heatmap is valid because every gradient is zero.

    False on other devices than the CPU, where reading the gradients would make the host wait.
    """
    if valid.device.type != "cpu" or len(valid) == 0 or not gradients:
        return False
    return not (valid.any() or any(maps.any() for maps in gradients))
