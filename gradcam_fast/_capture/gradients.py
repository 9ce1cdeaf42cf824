"""Gradients of the scores with respect to the activations of the layers, through the graph between and no further."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from .._autocast import without_autocast
from .._sparse_backward import sparse_gradients
from ..exceptions import ReentrantCheckpoint, ScoreIndependent
from .pooling import find_poolings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._model.target_layer import TargetLayer

__all__ = ["PickedLogits", "differentiate"]

# Nodes of matrix products: which input holds the rows that a linear layer transforms, and which hold its parameters.
_LINEAR = {"AddmmBackward0": (1, (0, 2)), "MmBackward0": (0, (1,))}


class PickedLogits(NamedTuple):
    """Scores that are the logits of their classes.

    Attributes:
        logits: (B,N), with their graph.
        classes: (B,) or (B,K), between 0 and N - 1.
        in_range: whether each is the class that was asked for; a score out of range has no gradient. None: all are.
    """

    logits: Tensor
    classes: Tensor
    in_range: Tensor | None = None


def differentiate(
    scores: Tensor,
    activations: Sequence[Tensor],
    layers: Sequence[TargetLayer],
    copy_has_hooks: Sequence[bool],
    picked: PickedLogits | None = None,
    *,
    hook_free: bool = False,
    may_batch: bool = True,
) -> list[Tensor]:
    """d score / d activations at each layer: (B,...) for scores (B,), (B,K,...) for scores (B,K).

    The backward goes only through the graph between the layers and the scores; no ``.grad`` is touched. A gradient that
    is the same at all positions is expanded (``pooling.py``), and products with zeros are left out where that saves
    time (``sparse_gradients``). The ordinary backward computes the K targets at once if every operation behind the
    layer is PyTorch's own, else one after another; the numbers are the same.

    Args:
        copy_has_hooks: for each layer, whether the copy of its activations that the model goes on with has hooks; a
            pooling behind the copy is then treated like any other operation.
        picked: where every score is the logit of its class.
        hook_free: whether no tensor or node of the graph has a hook or retains its gradient. If False, each hook runs
            once per target, on a gradient like that of an ordinary backward.
        may_batch: whether the ordinary backward may compute the K targets at once.

    Raises:
        ScoreIndependent: the scores do not depend on a layer.
    """
    if not scores.requires_grad:
        raise ScoreIndependent(layers[0].name)
    with without_autocast(scores.device.type):
        start, seeds = (picked and _before_last_linear(picked, activations)) or (scores, _one_hot(scores))
        pooled = find_poolings(start, activations, copy_has_hooks)
        sources = [maps if pooling is None else pooling.edge for maps, pooling in zip(activations, pooled, strict=True)]
        several_targets = scores.dim() == 2
        seeds = seeds if several_targets else seeds.unsqueeze(0)
        sparse = sparse_gradients(start, sources, seeds, activations) if hook_free else None
        computed = (
            _ordinary_gradients(start, sources, seeds, layers, hook_free and may_batch) if sparse is None else sparse
        )
        gradients = _require_gradients(computed, layers)
        if not several_targets:
            gradients = [maps[0] for maps in gradients]
        spread = [
            maps if pooling is None else pooling.spread(maps) for maps, pooling in zip(gradients, pooled, strict=True)
        ]
        return [maps.transpose(0, 1) for maps in spread] if several_targets else spread


def _ordinary_gradients(
    start: Tensor | GradientEdge,
    sources: Sequence[Tensor | GradientEdge],
    seeds: Tensor,
    layers: Sequence[TargetLayer],
    may_batch: bool,
) -> Sequence[Tensor | None]:
    """The gradients (K,...) of the sources for K seeds, by PyTorch's engine."""
    if len(seeds) > 1 and may_batch and _is_built_in(start):
        try:
            return _grad(start, sources, seeds, layers, retain=True, batched=True)
        except RuntimeError:  # an operation has no batched form, or the K targets together need too much memory
            pass
    per_target = [_grad(start, sources, seed, layers, retain=len(seeds) > 1) for seed in seeds]
    if len(seeds) == 1:
        return [None if maps is None else maps.unsqueeze(0) for maps in per_target[0]]
    return [None if maps[0] is None else torch.stack(maps) for maps in zip(*per_target, strict=True)]


def _is_built_in(start: Tensor | GradientEdge) -> bool:
    """Whether all operations behind the start are PyTorch's own, so that the backward runs no code of the model."""
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    pending, visited = [first], {first}
    for node in pending:
        if isinstance(node, BackwardCFunction):
            return False
        for input_node, _ in () if node is None else node.next_functions:
            if input_node not in visited:
                visited.add(input_node)
                pending.append(input_node)
    return True


def _one_hot(scores: Tensor) -> Tensor:
    """Seeds of the backward: ones (B,) for scores (B,), or for scores (B,K) one target each, (K,B,K)."""
    if scores.dim() == 1:
        return torch.ones_like(scores)
    batch, targets = scores.shape
    return torch.eye(targets, dtype=scores.dtype, device=scores.device).unsqueeze(1).expand(targets, batch, targets)


def _before_last_linear(picked: PickedLogits, activations: Sequence[Tensor]) -> tuple[GradientEdge, Tensor] | None:
    """If a linear layer made the logits: the edge to its input, and the gradients there, (B,F) or (K,B,F).

    The gradients are rows of the weight: the same bits as the product of a one-hot gradient and the weight. But that
    product reads the whole weight, which for one image of ResNet-50 takes as long as the rest of the backward.
    """
    logits = picked.logits
    node = logits.grad_fn
    # A hook on the logits may change their gradient.
    if node is None or node.name() not in _LINEAR or logits._backward_hooks or getattr(node, "_saved_alpha", 1) != 1:
        return None
    rows, parameters = _LINEAR[node.name()]
    input_node, output = node.next_functions[rows]
    if input_node is None or not all(_is_parameter(node.next_functions[i][0], activations) for i in parameters):
        return None
    weight: Tensor = node._saved_mat2.detach().t()  # type: ignore[attr-defined]
    rows_of_classes = torch.embedding(weight, picked.classes.t())
    if picked.in_range is not None:
        rows_of_classes = rows_of_classes.masked_fill(~picked.in_range.t().unsqueeze(-1), 0)
    return GradientEdge(input_node, output), rows_of_classes


def _is_parameter(node: Node | None, activations: Sequence[Tensor]) -> bool:
    """Whether the node's only source is a leaf, such as a transposed weight or a cast bias, but not the activations."""
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


def _require_gradients(gradients: Sequence[Tensor | None], layers: Sequence[TargetLayer]) -> list[Tensor]:
    for maps, layer in zip(gradients, layers, strict=True):
        if maps is None:
            raise ScoreIndependent(layer.name)
    return [maps for maps in gradients if maps is not None]
