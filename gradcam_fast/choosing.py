"""Which images of a batch are explained, and where their maps go among those of the batch.

Knows nothing of models, scores or how maps are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    When = Callable[[Any], Tensor]

__all__ = ["among", "check_when", "chosen", "rows"]


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


def chosen(when: When | None, logits: Any, batch: int) -> Tensor | None:
    """The images that ``when`` chooses, (n,) in rising order; None if these are all. The host waits for the device."""
    if when is None:
        return None
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


def rows(maps: Tensor, chosen: Tensor) -> Tensor:
    """``maps[chosen]``, lying in memory as the maps do, so that they are read alike; what is expanded stays so."""
    strides: tuple[int, ...] = maps.stride()
    thin = maps
    for axis, stride in enumerate(strides[1:], 1):
        if stride == 0:
            thin = thin.narrow(axis, 0, 1)
    order = [0, *sorted(range(1, maps.dim()), key=lambda axis: -strides[axis])]
    found = thin.permute(order).index_select(0, chosen.to(maps.device))
    back = [order.index(axis) for axis in range(maps.dim())]
    return found.permute(back).expand(len(chosen), *maps.shape[1:])


def among(batch: int, chosen: Tensor, values: Tensor, otherwise: float) -> Tensor:
    """(B,...) with ``values`` (n,...) at the chosen images and ``otherwise`` at the others."""
    whole = values.new_full((batch, *values.shape[1:]), otherwise)
    return whole.index_copy_(0, chosen.to(values.device), values)
