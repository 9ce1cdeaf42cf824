"""Which images of a batch are explained, their rows of its maps, and what the others get instead.

Knows nothing of models, scores or how maps are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    When = Callable[[Any], Tensor]

__all__ = ["check_when", "images_chosen", "nothing", "of_chosen"]


def check_when(when: When | None, *, cuda_graph: bool) -> When | None:
    """Refuse what can choose no images."""
    if when is None:
        return None
    if not callable(when):
        raise TypeError(
            f"when={when!r} is not callable; give a function from the logits to booleans (B,), for example "
            "when=lambda logits: logits.softmax(1).amax(1) < 0.5"
        )
    if cuda_graph:
        raise ValueError(
            "both when= and cuda_graph=True were given, but a recorded graph does the same for every batch; give one "
            "of them"
        )
    return when


def images_chosen(when: When, logits: Any, batch: int) -> Tensor | None:
    """The images that ``when`` chooses, (n,) in rising order; None if these are all. The host waits for the device."""
    mask = when(logits)
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"when= returned a {type(mask).__name__}; it must return a tensor of booleans ({batch},)")
    if mask.dtype != torch.bool or mask.shape != (batch,):
        raise ValueError(
            f"when= returned {mask.dtype} of shape {tuple(mask.shape)} for a batch of {batch}; expected booleans "
            f"({batch},), one per image"
        )
    found = mask.nonzero()[:, 0]
    return None if len(found) == batch else found


def of_chosen(maps: Tensor, chosen: Tensor) -> Tensor:
    """``maps[chosen]``, lying in memory as the maps do, so that they are read alike; what is expanded stays so."""
    strides: tuple[int, ...] = maps.stride()
    thin = maps
    for axis, stride in enumerate(strides[1:], 1):
        if stride == 0:
            thin = thin.narrow(axis, 0, 1)
    order = sorted(range(maps.dim()), key=lambda axis: -strides[axis])
    found = thin.permute(order).index_select(order.index(0), chosen.to(maps.device))
    back = [order.index(axis) for axis in range(maps.dim())]
    return found.permute(back).expand(len(chosen), *maps.shape[1:])


def nothing(
    maps: tuple[int, ...], size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What images get that are not explained, for ``maps`` (B[,K]) of them: heatmap, raw_min, raw_max and valid."""
    low, high = torch.full((2, *maps), torch.nan, device=device)
    return torch.zeros(*maps, *size, device=device), low, high, torch.zeros(maps, dtype=torch.bool, device=device)
