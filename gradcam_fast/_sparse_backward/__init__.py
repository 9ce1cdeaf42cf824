"""A backward that leaves out products with zeros, of K targets at once, where there may be enough zeros to gain time.

A head that reads the class token sends a gradient to that token alone, and it stays there back to the attention of the
last block. And for few images, a large linear layer such as VGG's is as slow as its weight is long, half of which or
more meets the zeros of hidden units that a ReLU has silenced. Zero times infinity or NaN counts as zero here.

``sparse_gradients`` is all that others use. Without this folder and the one call, the ordinary backward gives the same
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..ops import skinny_mm
from .blocks import BlockGradient
from .graph import backward, plan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["sparse_gradients"]

# A large linear layer is looked for among the operations nearest to the scores.
_NEAREST = 16


def sparse_gradients(
    start: Tensor | GradientEdge, sources: Sequence[Tensor | GradientEdge], seeds: Tensor, activations: Sequence[Tensor]
) -> list[Tensor | None] | None:
    """The gradients (K,...) of the sources for K seeds (K,...) at the start; None for a source without one.

    The graph is walked once, and None is returned for all if the ordinary backward has to run: one of the operations is
    not known or has tensors saved by hooks, or zeros save no time. Nothing has run then. Hooks on tensors and nodes
    cannot be seen in a graph: the caller vouches that there are none.
    """
    start = start if isinstance(start, GradientEdge) else get_gradient_edge(start)
    # Anomaly detection looks at what PyTorch's engine computes; blocks would fix the sizes that a trace leaves open.
    if torch.is_anomaly_enabled() or _has_symbolic_sizes(activations) or not _is_worthwhile(start, seeds, activations):
        return None
    edges = [source if isinstance(source, GradientEdge) else get_gradient_edge(source) for source in sources]
    operations = plan(start, edges)
    if operations is None:
        return None
    with torch.no_grad():
        gradients = backward(operations, start, edges, BlockGradient.from_dense(seeds))
        return [None if gradient is None else gradient.dense() for gradient in gradients]


def _is_worthwhile(start: GradientEdge, seeds: Tensor, activations: Sequence[Tensor]) -> bool:
    """Whether all activations are tokens (B,N,C), or the way from the start goes through a large linear layer."""
    return all(maps.is_cpu for maps in activations) and (
        all(maps.dim() == 3 for maps in activations)
        or (activations[0].dtype == torch.float32 and _has_large_linear(start, seeds.shape[:2].numel()))
    )


def _has_large_linear(start: GradientEdge, rows: int) -> bool:
    nodes = [start.node]
    for node in nodes:
        if node.name() in ("AddmmBackward0", "MmBackward0"):
            inputs, outputs = node._saved_mat2_sym_sizes  # type: ignore[attr-defined]
            if skinny_mm.pays(rows, (outputs, inputs)):
                return True
        nodes += [before for before, _ in node.next_functions if before is not None and before not in nodes]
        if len(nodes) > _NEAREST:
            break
    return False


def _has_symbolic_sizes(activations: Sequence[Tensor]) -> bool:
    return not all(isinstance(size, int) for maps in activations for size in maps.shape)
