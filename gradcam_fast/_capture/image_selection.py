"""``when=``: which images of a batch are explained, their feature maps, and the results of the other images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..explanation import REASONS

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import When

_NOT_CHOSEN = REASONS.index("not chosen")

__all__ = ["check_when", "empty_results", "rows_of_samples", "select_images", "selected_images"]


def check_when(when: When | None, *, cuda_graph: bool) -> When | None:
    """Refuse a value of ``when=`` that cannot choose images."""
    if when is None:
        return None
    if not callable(when):
        raise TypeError(
            f"when={when!r} is not callable; give a function from the logits to booleans (B,), for example "
            "when=lambda logits: logits.softmax(1).amax(1) < 0.5"
        )
    if cuda_graph:
        raise ValueError(
            "both when= and cuda_graph=True were given, but a recorded graph does the same work for every batch; give "
            "one of them"
        )
    return when


def selected_images(when: When, logits: Any, batch: int) -> Tensor | None:
    """The indices (n,) of the images that ``when`` chooses, in rising order; None if it chooses all.

    The host waits for the device.

    Raises:
        TypeError, ValueError: ``when`` did not return booleans (B,).
    """
    mask = when(logits)
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"when= returned a {type(mask).__name__}; it must return a tensor of booleans ({batch},)")
    if mask.dtype != torch.bool or mask.shape != (batch,):
        raise ValueError(
            f"when= returned {mask.dtype} of shape {tuple(mask.shape)} for a batch of {batch}; expected booleans "
            f"({batch},), one per image"
        )
    indices = mask.nonzero()[:, 0]
    return None if len(indices) == batch else indices


def rows_of_samples(samples: Tensor, maps_per_sample: int | None) -> Tensor:
    """The rows of these samples in maps that lie sample by sample."""
    if maps_per_sample is None:
        return samples
    place = torch.arange(maps_per_sample, dtype=samples.dtype, device=samples.device)
    return (samples.unsqueeze(1) * maps_per_sample + place).flatten()


def select_images(maps: Tensor, indices: Tensor) -> Tensor:
    """``maps[indices]`` in the same memory layout, so that the op reads them in the same order; stride 0 stays 0."""
    strides: tuple[int, ...] = maps.stride()
    stored = maps
    for axis, stride in enumerate(strides[1:], 1):
        if stride == 0:
            stored = stored.narrow(axis, 0, 1)
    order = sorted(range(maps.dim()), key=lambda axis: -strides[axis])
    selected = stored.permute(order).index_select(order.index(0), indices.to(maps.device))
    restored = [order.index(axis) for axis in range(maps.dim())]
    return selected.permute(restored).expand(len(indices), *maps.shape[1:])


def empty_results(
    shape: tuple[int, ...], size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Heatmap, raw_min, raw_max, valid and reason_codes of images that are not explained.

    Zeros, NaN, NaN, False and the code of "not chosen".

    Args:
        shape: (B,) or (B,K).
        size: (H,W) of the heatmaps.
    """
    # The types that heatmaps() returns, whatever the default type is.
    raw_min, raw_max = torch.full((2, *shape), torch.nan, dtype=torch.float32, device=device)
    heatmap = torch.zeros(*shape, *size, dtype=torch.float32, device=device)
    valid = torch.zeros(shape, dtype=torch.bool, device=device)
    return heatmap, raw_min, raw_max, valid, torch.full_like(valid, _NOT_CHOSEN, dtype=torch.uint8)
