"""Global average pooling behind a layer: its gradient is one number per channel, so it is expanded, not stored.

PyTorch's backward writes this number out at every position, which takes longer than making the heatmaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Pooling", "find_poolings"]

# Heads behind a pooling have fewer nodes. Visiting this many takes 15 us.
_MAX_NODES = 32


class Pooling:
    """A mean over axes of the activations, if no other operation reads the activations."""

    def __init__(self, node: Node, activations: Tensor) -> None:
        self.edge = GradientEdge(node, 0)
        self.shape, self.dtype = activations.shape, activations.dtype
        rank = len(self.shape)
        # Negative axes are stored modulo 2**64.
        self.axes = sorted((axis - (1 << 64) * (axis >> 63)) % rank for axis in node._saved_dim)  # type: ignore[attr-defined]
        self.keepdim: bool = node._saved_keepdim  # type: ignore[attr-defined]

    def spread(self, gradient: Tensor) -> Tensor:
        """The activations' gradient, from the mean's gradient (...) or (K,...); expanded with strides of 0."""
        divided = gradient / math.prod(self.shape[axis] for axis in self.axes)
        targets = gradient.shape[: gradient.dim() - len(self.shape) + (0 if self.keepdim else len(self.axes))]
        mean_shape = [1 if axis in self.axes else side for axis, side in enumerate(self.shape)]
        return divided.to(self.dtype).reshape(*targets, *mean_shape).expand(*targets, *self.shape)


def find_poolings(
    start: Tensor | GradientEdge, activations: Sequence[Tensor], copy_has_hooks: Sequence[bool]
) -> list[Pooling | None]:
    """For each layer, the pooling through which all of its gradient from ``start`` flows, or None.

    Args:
        activations: of each layer. The model goes on with a copy of them (``forward_with_activations``).
        copy_has_hooks: for each layer, whether the copy or a node may have hooks. Hooks must see the gradient that
            PyTorch computes, so there is no pooling then.
    """
    pooled: list[Pooling | None] = [None] * len(activations)
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    if first is None:
        return pooled
    nodes = [first]
    # The nodes that read each node's output.
    readers: dict[Node, list[Node]] = {first: []}
    for node in nodes:
        for input_node, _ in node.next_functions:
            if input_node is not None:
                if input_node not in readers:
                    readers[input_node] = []
                    nodes.append(input_node)
                readers[input_node].append(node)
        if len(nodes) > _MAX_NODES:
            return pooled
    for node in nodes:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            for i, maps in enumerate(activations):
                if maps is leaf and not copy_has_hooks[i]:
                    mean = _only_reader(readers, _only_reader(readers, node, "CloneBackward0"), "MeanBackward1")
                    if mean is not None and mean._saved_dim:  # type: ignore[attr-defined]
                        pooled[i] = Pooling(mean, maps)
    return pooled


def _only_reader(readers: dict[Node, list[Node]], node: Node | None, name: str) -> Node | None:
    """The only node that reads the output of ``node``, if it has this name; None otherwise."""
    nodes = [] if node is None else readers[node]
    return nodes[0] if len(nodes) == 1 and nodes[0].name() == name else None
