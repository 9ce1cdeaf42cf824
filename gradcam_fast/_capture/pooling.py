"""Global average pooling behind a layer: its gradient is one number per channel, so it is expanded, not stored.

PyTorch divides it at every position, which takes longer than making the heatmaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Pooling", "poolings"]

# Heads behind a pooling have fewer nodes. Visiting this many takes 15 us.
_MAX_NODES = 32


class Pooling:
    """A mean over axes of the activations, which nothing else reads."""

    def __init__(self, node: Node, activations: Tensor) -> None:
        self.edge = GradientEdge(node, 0)
        self.shape, self.dtype = activations.shape, activations.dtype
        rank = len(self.shape)
        # Negative axes are stored modulo 2**64.
        self.axes = sorted((axis - (1 << 64) * (axis >> 63)) % rank for axis in node._saved_dim)  # type: ignore[attr-defined]
        self.keeps: bool = node._saved_keepdim  # type: ignore[attr-defined]

    def spread(self, gradient: Tensor) -> Tensor:
        """The activations' gradient from the mean's, (...) or (K,...): every number once, repeated by strides of 0."""
        divided = gradient / math.prod(self.shape[axis] for axis in self.axes)
        targets = gradient.shape[: gradient.dim() - len(self.shape) + (0 if self.keeps else len(self.axes))]
        kept = [1 if axis in self.axes else side for axis, side in enumerate(self.shape)]
        return divided.to(self.dtype).reshape(*targets, *kept).expand(*targets, *self.shape)


def poolings(
    start: Tensor | GradientEdge, activations: Sequence[Tensor], hooked: Sequence[bool]
) -> list[Pooling | None]:
    """For each layer, the pooling that alone reads its activations on the way to ``start``, or None.

    Args:
        activations: those of each layer; a copy of them was handed onward (``hooks``).
        hooked: whether the copy, or a node, may have hooks: they are shown the gradient as PyTorch computes it.
    """
    pooled: list[Pooling | None] = [None] * len(activations)
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    if first is None:
        return pooled
    nodes = [first]
    # The nodes that read each node's output.
    readers: dict[Node, list[Node]] = {first: []}
    for node in nodes:
        for before, _ in node.next_functions:
            if before is not None:
                if before not in readers:
                    readers[before] = []
                    nodes.append(before)
                readers[before].append(node)
        if len(nodes) > _MAX_NODES:
            return pooled
    for node in nodes:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            for i, maps in enumerate(activations):
                if maps is leaf and not hooked[i]:
                    mean = _only(readers, _only(readers, node, "CloneBackward0"), "MeanBackward1")
                    if mean is not None and mean._saved_dim:  # type: ignore[attr-defined]
                        pooled[i] = Pooling(mean, maps)
    return pooled


def _only(readers: dict[Node, list[Node]], node: Node | None, name: str) -> Node | None:
    """The node that alone reads a node's output, if it has this name."""
    nodes = [] if node is None else readers[node]
    return nodes[0] if len(nodes) == 1 and nodes[0].name() == name else None
