"""Global average pooling behind a layer, of which a gradient need not be written out: it is one number per channel.

PyTorch divides it at every position, which takes longer than making the heatmaps does. Knows nothing of scores.
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

# Heads behind a pooling are short. Looking through as many operations takes 15 us.
_MOST = 32


class Pooling:
    """The mean over some axes that is all that becomes of some activations."""

    def __init__(self, node: Node, activations: Tensor) -> None:
        self.edge = GradientEdge(node, 0)
        self.shape, self.dtype = activations.shape, activations.dtype
        rank = len(self.shape)
        # Stored without signs.
        self.axes = sorted((axis - (1 << 64) * (axis >> 63)) % rank for axis in node._saved_dim)  # type: ignore[attr-defined]
        self.keeps: bool = node._saved_keepdim  # type: ignore[attr-defined]

    def spread(self, gradient: Tensor) -> Tensor:
        """The gradient of the mean, (...) or (K,...), as that of the activations: each number once, with stride 0."""
        divided = gradient / math.prod(self.shape[axis] for axis in self.axes)
        targets = gradient.shape[: gradient.dim() - len(self.shape) + (0 if self.keeps else len(self.axes))]
        kept = [1 if axis in self.axes else side for axis, side in enumerate(self.shape)]
        return divided.to(self.dtype).reshape(*targets, *kept).expand(*targets, *self.shape)


def poolings(
    start: Tensor | GradientEdge, activations: Sequence[Tensor], hooked: Sequence[bool]
) -> list[Pooling | None]:
    """For each of the activations, the pooling that alone reads them on the way to ``start``; None if there is none.

    Args:
        activations: of each layer; a copy of them was handed onward (``capture``).
        hooked: whether the copy has hooks, or nodes may have: these shall see its gradient as PyTorch makes it.
    """
    found: list[Pooling | None] = [None] * len(activations)
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    if first is None:
        return found
    nodes = [first]
    # By each operation, those that take what it makes.
    readers: dict[Node, list[Node]] = {first: []}
    for node in nodes:
        for before, _ in node.next_functions:
            if before is not None:
                if before not in readers:
                    readers[before] = []
                    nodes.append(before)
                readers[before].append(node)
        if len(nodes) > _MOST:
            return found
    for node in nodes:
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            for i, each in enumerate(activations):
                if each is leaf and not hooked[i]:
                    mean = _only(readers, _only(readers, node, "CloneBackward0"), "MeanBackward1")
                    if mean is not None and mean._saved_dim:  # type: ignore[attr-defined]
                        found[i] = Pooling(mean, each)
    return found


def _only(readers: dict[Node, list[Node]], node: Node | None, name: str) -> Node | None:
    """What alone reads a node's output, if it has this name."""
    found = [] if node is None else readers[node]
    return found[0] if len(found) == 1 and found[0].name() == name else None
