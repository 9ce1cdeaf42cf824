"""From scores back to the activations of chosen layers, through the graph that ``capture`` left, and no further.

Knows nothing of how the scores came about or of what the gradients are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import GradientEdge

from .._sparse_backward import without_zeros, worthwhile
from ..exceptions import ReentrantCheckpoint, ScoreIndependent
from .pooling import poolings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._model.target_layer import TargetLayer

__all__ = ["differentiate"]

# Products of matrices, and which of their inputs are the rows that a linear layer transforms and its parameters.
_LINEAR = {"AddmmBackward0": (1, (0, 2)), "MmBackward0": (0, (1,))}


def differentiate(
    scores: Tensor,
    activations: Sequence[Tensor],
    layers: Sequence[TargetLayer],
    hooked: Sequence[bool],
    picked: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:
    """d score / d activations at each layer: (B,...) for scores (B,), (B,K,...) for scores (B,K).

    Only the graph between is walked; no ``.grad`` is touched. Where much of the gradient may be zero, that is left out
    (``sparing``); where it is the same at all positions, it is expanded (``pooling``). Else the K targets of an image
    go in one batched backward where every operation behind the layer can, or one after another, with the same numbers.

    Args:
        hooked: of each layer, whether what was handed onward has hooks; a pooling behind it then counts as any other
            operation.
        picked: logits (B,N) and, for each score, the class in range whose logit it is; None if it is something else.

    Raises:
        ScoreIndependent: the scores do not depend on a layer.
    """
    if not scores.requires_grad:
        raise ScoreIndependent(layers[0].name)
    with _without_autocast(scores.device.type):
        start, seeds = (picked and _before_last_linear(*picked, activations)) or (scores, _one_hot(scores))
        pooled = poolings(start, activations, hooked)
        sources = [each if pooling is None else pooling.edge for each, pooling in zip(activations, pooled, strict=True)]
        found = None
        if worthwhile(start, activations, scores.numel()):
            found = without_zeros(start, sources, seeds if scores.dim() == 2 else seeds.unsqueeze(0))
            if found is not None and scores.dim() == 1:
                found = [maps[0] for maps in found]
        if found is None:
            found = _all_numbers(start, sources, seeds, layers, several=scores.dim() == 2)
        found = [maps if each is None else each.spread(maps) for maps, each in zip(found, pooled, strict=True)]
        return [maps.transpose(0, 1) for maps in found] if scores.dim() == 2 else found


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _all_numbers(
    start: Tensor | GradientEdge,
    sources: Sequence[Tensor | GradientEdge],
    seeds: Tensor,
    layers: Sequence[TargetLayer],
    *,
    several: bool,
) -> list[Tensor]:
    """The gradients (...) of the sources for one seed, or (K,...) for several."""
    if not several:
        return _checked(_grad(start, sources, seeds, layers), layers)
    try:
        batched = _grad(start, sources, seeds, layers, retain=True, batched=True)
    except ReentrantCheckpoint:
        raise
    except RuntimeError:
        single = [_checked(_grad(start, sources, each, layers, retain=True), layers) for each in seeds]
        return [torch.stack(maps) for maps in zip(*single, strict=True)]
    return _checked(batched, layers)


def _one_hot(scores: Tensor) -> Tensor:
    """What goes back into scores (B,), or for each of their K targets, (K,B,K), into scores (B,K)."""
    if scores.dim() == 1:
        return torch.ones_like(scores)
    batch, targets = scores.shape
    return torch.eye(targets, dtype=scores.dtype, device=scores.device).unsqueeze(1).expand(targets, batch, targets)


def _before_last_linear(
    logits: Tensor, classes: Tensor, activations: Sequence[Tensor]
) -> tuple[GradientEdge, Tensor] | None:
    """If a linear layer made the logits: its input in the graph, and the gradients there, (B,F) or (K,B,F).

    They are rows of the weight, to the bit what the product with a one-hot gradient gives; but that reads all of the
    weight, which for one image of ResNet-50 takes as long as the rest of the backward.
    """
    node = logits.grad_fn
    # A hook on the logits may change the gradient on its way.
    if node is None or node.name() not in _LINEAR or logits._backward_hooks or getattr(node, "_saved_alpha", 1) != 1:
        return None
    rows, parameters = _LINEAR[node.name()]
    before, output = node.next_functions[rows]
    if before is None or not all(_is_parameter(node.next_functions[each][0], activations) for each in parameters):
        return None
    weight: Tensor = node._saved_mat2.detach().t()  # type: ignore[attr-defined]
    return GradientEdge(before, output), torch.embedding(weight, classes.t())


def _is_parameter(node: Node | None, activations: Sequence[Tensor]) -> bool:
    """Whether nothing but one leaf goes into it, and none that is asked about: a transposed weight, a cast bias."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", None)
    return node is None or (leaf is not None and all(leaf is not each for each in activations))


def _grad(
    start: Tensor | GradientEdge,
    sources: Sequence[Tensor | GradientEdge],
    seeds: Tensor,
    layers: Sequence[TargetLayer],
    *,
    retain: bool = False,
    batched: bool = False,
) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(
            start,
            sources,  # type: ignore[arg-type] # tensors and edges, mixed
            seeds,
            retain_graph=retain,
            allow_unused=True,
            is_grads_batched=batched,
        )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise ReentrantCheckpoint(layers[0].name) from None
        raise


def _checked(found: Sequence[Tensor | None], layers: Sequence[TargetLayer]) -> list[Tensor]:
    for maps, layer in zip(found, layers, strict=True):
        if maps is None:
            raise ScoreIndependent(layer.name)
    return [maps for maps in found if maps is not None]
