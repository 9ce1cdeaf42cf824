"""Heatmaps of one or several layers: calls the op at each layer, averages their maps, and says which show nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..explanation import REASONS
from .cam import cam
from .reference import normalise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gradients_vanished", "heatmaps"]

_COUNTER_EVIDENCE, _NO_GRADIENT, _NOT_FINITE, _FLAT, _NOT_CHOSEN = map(
    REASONS.index, ("only counter-evidence", "no gradient", "not finite", "flat", "not chosen")
)
# Methods whose weights are never negative: a gradient that speaks against the score makes no negative value, but none.
_WITHOUT_NEGATIVE_WEIGHTS = ("gradcam++", "elementwise", "layercam")
# A pooled gradient that is so small beside the mean absolute gradient is what rounding leaves of zero.
_NOISE = 1e-5


def heatmaps(
    activations: Sequence[Tensor],
    gradients: Sequence[Tensor],
    size: tuple[int, ...],
    *,
    method: str,
    normalize: str,
    relu: bool,
    may_wait: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the heatmaps (B[,K],H,W) of one layer; of several layers the mean of their heatmaps, normalised again.

    Args:
        activations: for each layer (B,C,h,w); series have one axis in place of h and w, volumes three.
        gradients: for each layer (B[,K],C,h,w).
        size: the sides of the heatmap, as many as the activations have after C.
        method, normalize, relu: as in :func:`gradcam_fast.cam`.
        may_wait: whether values on the CPU may be looked at, which saves time where all heatmaps are valid.

    Returns:
        heatmap; raw_min and raw_max (B[,K]), the extremes before the (last) normalisation; valid (B[,K]), whether the
        maps of all layers are finite, the heatmap is not flat and it is made of more than rounding noise; reason_codes
        (B[,K]), why it is not, as places in ``REASONS``.
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
    if method == "gradcam":
        noise = [_pools_to_noise(g, a.dim() - 2) for a, g in zip(activations, gradients, strict=True)]
        if all(of_layer is not None for of_layer in noise):
            valid &= ~torch.stack([of_layer for of_layer in noise if of_layer is not None]).all(0)
    if may_wait and valid.device.type == "cpu" and valid.all():
        codes = torch.zeros_like(valid, dtype=torch.uint8)
    else:
        # Without ReLU, only "max" leaves out what is negative.
        vanished = torch.stack(
            [_no_gradient(g, a.dim() - 2, method) for a, g in zip(activations, gradients, strict=True)]
        )
        codes = torch.where(vanished.all(0), _NO_GRADIENT, _FLAT)
        if relu or normalize == "max":
            against = [_speaks_against(a, g, method) for a, g in zip(activations, gradients, strict=True)]
            codes = torch.where(torch.stack(against).any(0) & ~vanished.all(0), _COUNTER_EVIDENCE, codes)
        codes = torch.where(high.isnan(), _NOT_FINITE, codes).masked_fill(valid, 0).to(torch.uint8)
    return heatmap.float(), low.float(), high.float(), valid, codes


def _pools_to_noise(gradients: Tensor, rank: int) -> Tensor | None:
    """Whether (B[,K]) the mean over the positions of gradients (B[,K],C,h,w) is rounding noise, or they are zero.

    None if it cannot be, because the gradients are expanded: the same at all positions.
    """
    positions = tuple(range(-rank, 0))
    if all(gradients.stride(axis) == 0 for axis in positions):
        return None
    dtype = torch.promote_types(gradients.dtype, torch.float32)
    magnitude = gradients.abs().sum(positions, dtype=dtype)
    return gradients.sum(positions, dtype=dtype).abs().amax(-1) <= _NOISE * magnitude.amax(-1)


def _no_gradient(gradients: Tensor, rank: int, method: str) -> Tensor:
    """Whether gradients (B[,K],C,h,w) are zero, or (B[,K]) what the method pools of them is rounding noise."""
    noise = _pools_to_noise(gradients, rank) if method == "gradcam" else None
    if noise is not None:
        return noise
    positions = tuple(range(-rank, 0))
    if all(gradients.stride(axis) == 0 for axis in positions):
        return ~gradients.flatten(-rank)[..., 0].any(-1)
    return ~gradients.abs().sum(positions, dtype=torch.promote_types(gradients.dtype, torch.float32)).any(-1)


def _speaks_against(activations: Tensor, gradients: Tensor, method: str) -> Tensor:
    """Whether the map has a negative value before ReLU, or, of methods without any, a negative product went into it."""
    grid = tuple(activations.shape[2:])
    if method in _WITHOUT_NEGATIVE_WEIGHTS:
        _, _, high = cam(-activations, gradients, grid, method="elementwise", normalize="none")
        return high > 0
    _, low, _ = cam(activations, gradients, grid, method=method, normalize="none", relu=False)
    return low < 0


def gradients_vanished(reason_codes: Tensor | None) -> bool:
    """Whether all heatmaps asked for show nothing because their gradients are zero or pool to rounding noise.

    False on other devices than the CPU, where reading the codes would make the host wait.
    """
    if reason_codes is None or reason_codes.device.type != "cpu" or len(reason_codes) == 0:
        return False
    without_gradient = reason_codes == _NO_GRADIENT
    return bool(without_gradient.any() and (without_gradient | (reason_codes == _NOT_CHOSEN)).all())
