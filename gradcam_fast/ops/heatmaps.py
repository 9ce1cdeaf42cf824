"""Heatmaps of one or several layers: calls the op at each layer, averages their maps, and says which show nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..explanation import REASONS
from .cam import cam
from .reference import normalise

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gradients_vanished", "heatmaps", "heatmaps_of_several", "mean_heatmap", "pooled_noise"]

_COUNTER_EVIDENCE, _NO_GRADIENT, _NOT_FINITE, _FLAT, _NOT_CHOSEN = map(
    REASONS.index, ("only counter-evidence", "no gradient", "not finite", "flat", "not chosen")
)
# Methods whose weights are never negative: a gradient that speaks against the score makes no negative value, but none.
_WITHOUT_NEGATIVE_WEIGHTS = ("gradcam++", "elementwise", "layercam")
# A pooled gradient that is so small beside the mean absolute gradient is what rounding leaves of zero, in float32.
_POOLED_NOISE = 1e-5
# How much the values of a map may differ, in units of rounding, where they are the same at all positions.
_FLAT_SPREAD = 32


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
    choices: dict[str, Any] = {"method": method, "normalize": normalize, "relu": relu}
    per_layer = [cam(a, g, size, **choices) for a, g in zip(activations, gradients, strict=True)]
    heatmap, low, high = per_layer[0]
    if len(per_layer) > 1:
        maps, highs = ([result[i] for result in per_layer] for i in (0, 2))
        heatmap, low, high = mean_heatmap(maps, highs, normalize)
    return _results(heatmap, low, high, activations, gradients, choices, may_wait=may_wait)


def mean_heatmap(heatmaps: Sequence[Tensor], highs: Sequence[Tensor], normalize: str) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of normalised heatmaps (B[,K],H,W), normalised again, and its extremes (B[,K]) before that.

    Args:
        heatmaps: with any number of axes in place of H and W.
        highs: (B[,K]) of each, the largest value before its normalisation; NaN where it is not finite.
    """
    heatmap = torch.stack(list(heatmaps)).mean(0)
    # A heatmap that is not finite is zeros; the mean with another one would hide that.
    broken = torch.stack(list(highs)).isnan().any(0)
    over = tuple(range(broken.dim() - heatmap.dim(), 0))
    low, high = (torch.where(broken, torch.nan, extreme(over)) for extreme in (heatmap.amin, heatmap.amax))
    return _scaled(heatmap, low, high, normalize), low, high


def heatmaps_of_several(
    activations: Sequence[Tensor],
    gradients: Sequence[Tensor],
    size: tuple[int, ...],
    pictures: Sequence[Sequence[int]],
    *,
    method: str,
    normalize: str,
    relu: bool,
    may_wait: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the heatmaps (B[,K],T,H,W) of T pictures a sample, such as the frames of a clip.

    Every picture's channels are weighted by its own pooled gradient. The maps of a sample share one scale, the extremes
    over all its pictures, so that they can be compared: a picture that counts for little stays dark.

    Args:
        activations: for each layer (B*n,C,h,w), sample by sample.
        gradients: for each layer (B*n[,K],C,h,w).
        size: the sides of the heatmap.
        pictures: for each layer, of which n pictures its maps are. If layers have the same pictures, the result is the
            mean of their heatmaps; else every picture is of one layer.
        method, normalize, relu, may_wait: as in :func:`heatmaps`.

    Returns:
        heatmap; raw_min, raw_max, valid and reason_codes (B[,K]) as :func:`heatmaps` returns them, over all pictures of
        a sample.
    """
    per_layer = []
    for maps, gradient, covered in zip(activations, gradients, pictures, strict=True):
        raw, low, high = cam(maps, gradient, size, method=method, normalize="none", relu=relu)
        several = (-1, len(covered))
        per_picture = raw.unflatten(0, several).movedim(1, -1 - len(size))
        per_layer.append((per_picture, low.unflatten(0, several).amin(1), high.unflatten(0, several).amax(1)))
    heatmap, low, high = per_layer[0]
    one_each = len({tuple(covered) for covered in pictures}) == len(pictures)
    if len(pictures) > 1 and one_each:
        axis = -1 - len(size)
        covered_by_all = [picture for covered in pictures for picture in covered]
        order = torch.tensor(covered_by_all, dtype=torch.int64, device="cpu").argsort()
        heatmap = torch.cat([maps for maps, _, _ in per_layer], axis)
        heatmap = heatmap.index_select(axis, order.to(heatmap.device))
        low = torch.stack([layer_low for _, layer_low, _ in per_layer]).amin(0)
        high = torch.stack([layer_high for _, _, layer_high in per_layer]).amax(0)
    if one_each:
        heatmap = _scaled(heatmap, low, high, normalize)
    else:
        scaled = [normalise(maps, low, high, normalize) for maps, low, high in per_layer]
        heatmap, low, high = mean_heatmap(scaled, [layer_high for _, _, layer_high in per_layer], normalize)
    choices: dict[str, Any] = {"method": method, "normalize": normalize, "relu": relu}
    counts = [len(covered) for covered in pictures]
    return _results(heatmap, low, high, activations, gradients, choices, may_wait=may_wait, counts=counts)


def _scaled(heatmap: Tensor, low: Tensor, high: Tensor, normalize: str) -> Tensor:
    broken = high.isnan().reshape(*high.shape, *[1] * (heatmap.dim() - high.dim()))
    return normalise(heatmap, low, high, normalize).masked_fill(broken, 0)


def _results(
    heatmap: Tensor,
    low: Tensor,
    high: Tensor,
    activations: Sequence[Tensor],
    gradients: Sequence[Tensor],
    choices: dict[str, Any],
    *,
    may_wait: bool,
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results of :func:`heatmaps`, from heatmaps that are scaled and the extremes before that."""
    valid = high - low > _FLAT_SPREAD * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    if choices["normalize"] == "max":
        valid &= high > 0
    codes = _reason_codes(activations, gradients, valid, high, **choices, may_wait=may_wait, counts=counts)
    return heatmap.float(), low.float(), high.float(), valid, codes


def _reason_codes(
    activations: Sequence[Tensor],
    gradients: Sequence[Tensor],
    valid: Tensor,
    high: Tensor,
    *,
    method: str,
    normalize: str,
    relu: bool,
    may_wait: bool,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Why heatmaps (B[,K]) show nothing, as places in ``REASONS``; sets ``valid`` False where they are rounding noise.

    Args:
        valid: (B[,K]), whether the heatmaps are finite and not flat.
        high: (B[,K]), NaN where the maps are not finite.
        counts: for each layer, how many maps a sample it has; None if one, and the heatmap is of one.
    """
    ranks = [maps.dim() - 2 for maps in activations]
    noise: list[Tensor | None] = [None] * len(ranks)
    if method == "gradcam":
        noise = [_pools_to_noise(g, rank) for g, rank in zip(gradients, ranks, strict=True)]
        known = [of_layer for of_layer in noise if of_layer is not None]
        if len(known) == len(noise):
            valid &= ~_of_samples(known, counts, torch.all)
    if may_wait and valid.device.type == "cpu" and valid.all():
        return torch.zeros_like(valid, dtype=torch.uint8)
    without_gradient = [
        _vanishes(g, rank) if of_layer is None else of_layer
        for g, rank, of_layer in zip(gradients, ranks, noise, strict=True)
    ]
    vanished = _of_samples(without_gradient, counts, torch.all)
    codes = torch.where(vanished, _NO_GRADIENT, _FLAT)
    # Without ReLU, only "max" leaves out what is negative.
    if relu or normalize == "max":
        against = [_speaks_against(a, g, method) for a, g in zip(activations, gradients, strict=True)]
        codes = torch.where(_of_samples(against, counts, torch.any) & ~vanished, _COUNTER_EVIDENCE, codes)
    return torch.where(high.isnan(), _NOT_FINITE, codes).masked_fill(valid, 0).to(torch.uint8)


def _of_samples(
    masks: Sequence[Tensor], counts: Sequence[int] | None, reduce: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Whether (B[,K]) something holds for all, or any, maps of a sample, from one mask (B*n[,K]) for each layer."""
    if counts is not None:
        pairs = zip(masks, counts, strict=True)
        masks = [of_map for of_layer, count in pairs for of_map in of_layer.unflatten(0, (-1, count)).unbind(1)]
    return masks[0] if len(masks) == 1 else reduce(torch.stack(list(masks)), 0)


def pooled_noise(dtype: torch.dtype) -> float:
    """How small a pooled gradient may be beside the mean absolute gradient, if it is what rounding leaves of zero.

    Gradients of fewer bits than float32's are rounded to half of the dtype's epsilon themselves.
    """
    return max(_POOLED_NOISE, torch.finfo(dtype).eps / 2)


def _pools_to_noise(gradients: Tensor, rank: int) -> Tensor | None:
    """Whether (B[,K]) the mean over the positions of gradients (B[,K],C,h,w) is rounding noise, or they are zero.

    None if it cannot be, because the gradients are expanded: the same at all positions.
    """
    positions = tuple(range(-rank, 0))
    if all(gradients.stride(axis) == 0 for axis in positions):
        return None
    dtype = torch.promote_types(gradients.dtype, torch.float32)
    magnitude = gradients.abs().sum(positions, dtype=dtype)
    noise = pooled_noise(gradients.dtype) * magnitude.amax(-1)
    return gradients.sum(positions, dtype=dtype).abs().amax(-1) <= noise


def _vanishes(gradients: Tensor, rank: int) -> Tensor:
    """Whether (B[,K]) the gradients (B[,K],C,h,w) are zero."""
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
    if not reason_codes.any():
        return False
    without_gradient = reason_codes == _NO_GRADIENT
    return bool(without_gradient.any() and (without_gradient | (reason_codes == _NOT_CHOSEN)).all())
