"""From scores back to the activations of chosen layers, through the graph that ``capture`` left, and no further.

Knows nothing of how the scores came about or of what the gradients are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .unfit import Independent, Reentrant

if TYPE_CHECKING:
    from torch import Tensor

    from .layers import Layer

__all__ = ["differentiate"]


def differentiate(scores: Tensor, activations: Sequence[Tensor], layers: Sequence[Layer]) -> list[Tensor]:
    """d score / d activations at each layer: (B,...) for scores (B,), (B,K,...) for scores (B,K).

    Only the graph between is walked; no ``.grad`` is touched. The K targets of an image go in one batched backward
    where every operation behind the layer can, else one after another, with the same numbers.

    Raises:
        Independent: the scores do not depend on a layer.
    """
    if not scores.requires_grad:
        raise Independent(layers[0].name)
    device = scores.device.type
    with torch.inference_mode(False), torch.autocast(device, enabled=False):
        if scores.dim() == 1:
            return _checked(_grad(scores, activations, torch.ones_like(scores), layers), layers)
        batch, targets = scores.shape
        one_hot = torch.eye(targets, dtype=scores.dtype, device=scores.device)
        one_hot = one_hot.unsqueeze(1).expand(targets, batch, targets)
        try:
            found = _grad(scores, activations, one_hot, layers, batched=True)
        except Reentrant:
            raise
        except RuntimeError:
            single = [_checked(_grad(scores, activations, each, layers), layers) for each in one_hot]
            return [torch.stack(maps, 1) for maps in zip(*single, strict=True)]
        return [maps.transpose(0, 1) for maps in _checked(found, layers)]


def _grad(
    scores: Tensor, activations: Sequence[Tensor], weights: Tensor, layers: Sequence[Layer], *, batched: bool = False
) -> Sequence[Tensor | None]:
    several = batched or scores.dim() == 2
    try:
        return torch.autograd.grad(
            scores, activations, weights, retain_graph=several, allow_unused=True, is_grads_batched=batched
        )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise Reentrant(layers[0].name) from None
        raise


def _checked(found: Sequence[Tensor | None], layers: Sequence[Layer]) -> list[Tensor]:
    for maps, layer in zip(found, layers, strict=True):
        if maps is None:
            raise Independent(layer.name)
    return [maps for maps in found if maps is not None]
