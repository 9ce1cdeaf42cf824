"""A backward for K targets at once that leaves out products with zeros, where there may be enough zeros to save time.

A head that reads only the class token has a gradient at that token alone, and the gradient stays there back to the
attention of the last block. And for few images, a large linear layer such as VGG's takes as long as reading its weight;
half of the rows or more belong to hidden units that the ReLU has set to zero, and need not be read. Zero times infinity
or NaN counts as zero here.

Other modules call ``sparse_gradients`` only. Without this folder and that one call, the ordinary backward gives the
same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..ops import skinny_mm

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["sparse_gradients"]

# A large linear layer is looked for among this many operations nearest to the scores.
_MAX_NODES_SEARCHED = 16


def sparse_gradients(
    start: Tensor | GradientEdge, sources: Sequence[Tensor | GradientEdge], seeds: Tensor, activations: Sequence[Tensor]
) -> list[Tensor | None] | None:
    """The gradients (K,...) of the sources for K seeds (K,...) at the start; None for a source without a gradient.

    One walk over the graph decides before anything is computed. The result is None if the ordinary backward has to run:
    an operation is not known or has tensors saved by hooks, or zeros would save no time. A graph does not show the
    hooks on its tensors and nodes, so the caller must make sure that there are none.
    """
    start = start if isinstance(start, GradientEdge) else get_gradient_edge(start)
    # Anomaly detection checks what PyTorch's engine computes, so the engine has to run.
    if (
        torch.is_anomaly_enabled()
        or not all(map(_has_fixed_positions, activations))
        or not _is_worthwhile(start, seeds, activations)
    ):
        return None
    # Imported here, because many programs explain no model that needs the rules.
    from .blocks import BlockGradient
    from .graph import backward, plan

    edges = [source if isinstance(source, GradientEdge) else get_gradient_edge(source) for source in sources]
    operations = plan(start, edges)
    if operations is None:
        return None
    with torch.no_grad():
        gradients = backward(operations, start, edges, BlockGradient.from_dense(seeds))
        return [None if gradient is None else gradient.dense() for gradient in gradients]


def _is_worthwhile(start: GradientEdge, seeds: Tensor, activations: Sequence[Tensor]) -> bool:
    """Whether zeros may save time: on the CPU, for tokens (B,N,C), or if a large linear layer is near the start."""
    return all(maps.is_cpu for maps in activations) and (
        all(maps.dim() == 3 for maps in activations)
        or (activations[0].dtype == torch.float32 and _has_large_linear(start, math.prod(seeds.shape[:2])))
    )


def _has_large_linear(start: GradientEdge, rows: int) -> bool:
    if not isinstance(rows, int):  # symbolic: the trace is for any number of images
        return False
    nodes = [start.node]
    for node in nodes:
        if node.name() in ("AddmmBackward0", "MmBackward0"):
            inputs, outputs = node._saved_mat2_sym_sizes  # type: ignore[attr-defined]
            if skinny_mm.pays(rows, (outputs, inputs)):
                return True
        nodes += [before for before, _ in node.next_functions if before is not None and before not in nodes]
        if len(nodes) > _MAX_NODES_SEARCHED:
            break
    return False


def _has_fixed_positions(maps: Tensor) -> bool:
    """Whether at most one size, the batch's, is symbolic: in a trace for any sides, blocks have no fixed places."""
    return sum(not isinstance(size, int) for size in maps.shape) <= 1
