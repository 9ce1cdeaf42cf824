"""Gradients of the scores with respect to the activations of the layers, through the graph between and no further."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from .._sparse_backward import sparse_gradients
from ..exceptions import ReentrantCheckpoint, ScoreIndependent
from .pooling import poolings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._model.target_layer import TargetLayer

__all__ = ["differentiate"]

# Nodes of matrix products: which input holds the rows that a linear layer transforms, and which hold its parameters.
_LINEAR = {"AddmmBackward0": (1, (0, 2)), "MmBackward0": (0, (1,))}


def differentiate(
    scores: Tensor,
    activations: Sequence[Tensor],
    layers: Sequence[TargetLayer],
    hooked: Sequence[bool],
    picked: tuple[Tensor, Tensor] | None = None,
    *,
    unhooked: bool = False,
) -> list[Tensor]:
    """d score / d activations at each layer: (B,...) for scores (B,), (B,K,...) for scores (B,K).

    Only the graph between is walked; no ``.grad`` is touched. A gradient that is the same at all positions is expanded
    (``pooling``), and products with zeros are left out where that saves time (``sparse_gradients``). The ordinary
    backward takes the K targets at once if every operation behind the layer is PyTorch's own, else one after another;
    the numbers are the same.

    Args:
        hooked: for each layer, whether the copy of its activations that was handed onward has hooks; a pooling behind
            it then counts as any other operation.
        picked: logits (B,N) and, for each score, the class in range whose logit it is; None if it is something else.
        unhooked: whether no tensor or node of the graph has a hook or retains its gradient. If one may, each hook runs
            once per target, on a gradient like that of an ordinary backward.

    Raises:
        ScoreIndependent: the scores do not depend on a layer.
    """
    if not scores.requires_grad:
        raise ScoreIndependent(layers[0].name)
    with _without_autocast(scores.device.type):
        start, seeds = (picked and _before_last_linear(*picked, activations)) or (scores, _one_hot(scores))
        pooled = poolings(start, activations, hooked)
        sources = [maps if pooling is None else pooling.edge for maps, pooling in zip(activations, pooled, strict=True)]
        several = scores.dim() == 2
        seeds = seeds if several else seeds.unsqueeze(0)
        sparse = sparse_gradients(start, sources, seeds, activations) if unhooked else None
        gradients = _ordinary_gradients(start, sources, seeds, layers, unhooked) if sparse is None else sparse
        checked = _checked(gradients, layers) if several else [maps[0] for maps in _checked(gradients, layers)]
        spread = [
            maps if pooling is None else pooling.spread(maps) for maps, pooling in zip(checked, pooled, strict=True)
        ]
        return [maps.transpose(0, 1) for maps in spread] if several else spread


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _ordinary_gradients(
    start: Tensor | GradientEdge,
    sources: Sequence[Tensor | GradientEdge],
    seeds: Tensor,
    layers: Sequence[TargetLayer],
    unhooked: bool,
) -> Sequence[Tensor | None]:
    """The gradients (K,...) of the sources for K seeds, by PyTorch's engine."""
    if len(seeds) > 1 and unhooked and _is_built_in(start):
        try:
            return _grad(start, sources, seeds, layers, retain=True, batched=True)
        except RuntimeError:  # one of PyTorch's own operations has no batched form, or they need too much memory
            pass
    per_target = [_grad(start, sources, seed, layers, retain=len(seeds) > 1) for seed in seeds]
    if len(seeds) == 1:
        return [None if maps is None else maps.unsqueeze(0) for maps in per_target[0]]
    return [None if maps[0] is None else torch.stack(maps) for maps in zip(*per_target, strict=True)]


def _is_built_in(start: Tensor | GradientEdge) -> bool:
    """Whether all operations behind the start are PyTorch's own, so that no code of the model's runs in a backward."""
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    pending, seen = [first], {first}
    for node in pending:
        if isinstance(node, BackwardCFunction):
            return False
        for before, _ in () if node is None else node.next_functions:
            if before not in seen:
                seen.add(before)
                pending.append(before)
    return True


def _one_hot(scores: Tensor) -> Tensor:
    """Seeds of the backward: ones (B,) for scores (B,), or for scores (B,K) one target each, (K,B,K)."""
    if scores.dim() == 1:
        return torch.ones_like(scores)
    batch, targets = scores.shape
    return torch.eye(targets, dtype=scores.dtype, device=scores.device).unsqueeze(1).expand(targets, batch, targets)


def _before_last_linear(
    logits: Tensor, classes: Tensor, activations: Sequence[Tensor]
) -> tuple[GradientEdge, Tensor] | None:
    """If a linear layer made the logits: the edge to its input, and the gradients there, (B,F) or (K,B,F).

    The gradients are rows of the weight, bit by bit what the product of a one-hot gradient and the weight gives. That
    product reads all of the weight, which for one image of ResNet-50 takes as long as the rest of the backward.
    """
    node = logits.grad_fn
    # A hook on the logits may change their gradient.
    if node is None or node.name() not in _LINEAR or logits._backward_hooks or getattr(node, "_saved_alpha", 1) != 1:
        return None
    rows, parameters = _LINEAR[node.name()]
    before, output = node.next_functions[rows]
    if before is None or not all(_is_parameter(node.next_functions[i][0], activations) for i in parameters):
        return None
    weight: Tensor = node._saved_mat2.detach().t()  # type: ignore[attr-defined]
    return GradientEdge(before, output), torch.embedding(weight, classes.t())


def _is_parameter(node: Node | None, activations: Sequence[Tensor]) -> bool:
    """Whether the node's only source is a leaf other than the activations: a transposed weight, a cast bias."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    leaf = getattr(node, "variable", None)
    return node is None or (leaf is not None and all(leaf is not maps for maps in activations))


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


def _checked(gradients: Sequence[Tensor | None], layers: Sequence[TargetLayer]) -> list[Tensor]:
    for maps, layer in zip(gradients, layers, strict=True):
        if maps is None:
            raise ScoreIndependent(layer.name)
    return [maps for maps in gradients if maps is not None]
