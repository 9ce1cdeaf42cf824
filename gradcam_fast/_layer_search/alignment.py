"""Whether a map shows the whole image as it lies: no part of it, nothing mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .._layout.token_places import at_position
from .graph_walk import leaves_behind

if TYPE_CHECKING:
    from torch import Tensor

    from .traced_map import TracedMap

__all__ = ["is_aligned"]

# How far from its place (as a part of the side) the middle of what a position sees may lie: borders cut off some of it.
_TOLERANCE = 0.25


def is_aligned(maps: Sequence[TracedMap], traced: TracedMap, images: Tensor) -> bool:
    """Whether the first maps behind this one see the images where their first and their last position are.

    The layers between run in the same way in every call; only what they take may be a part, or lie otherwise.

    Args:
        maps: of the trial run that made the map.
        traced: the map.
        images: (B,C,h,w), the leaf that they come from.
    """
    by_leaf = {id(earlier.leaf): earlier for earlier in maps}
    pending, seen = [traced], {traced}
    while pending:
        earlier = pending.pop()
        if earlier.behind is None:
            return False
        leaves = leaves_behind(earlier.behind.node)
        if any(leaf is images for leaf in leaves) and not _sees_all(earlier, images):
            return False
        pending.extend(before for leaf in leaves if (before := by_leaf.get(id(leaf))) and before not in seen)
        seen.update(pending)
    return True


def _sees_all(traced: TracedMap, images: Tensor) -> bool:
    assert traced.behind is not None
    sides = traced.layout(traced.leaf).shape[2:]
    for end in (0, -1):
        gradient = at_position(
            torch.randn(traced.shape, dtype=traced.leaf.dtype, device=traced.leaf.device), traced.layout, end
        )
        (part,) = torch.autograd.grad(traced.behind, images, gradient, retain_graph=True)
        seen = part.abs_().sum((0, 1)).double()
        for axis, count in enumerate(sides):
            along = seen.movedim(axis, -1).reshape(-1, seen.shape[axis]).sum(0)
            places = (torch.arange(len(along), dtype=along.dtype, device=along.device) + 0.5) / len(along)
            middle = float((along * places).sum() / along.sum())
            # NaN, where nothing is seen, is not near.
            if not abs(middle - abs(0.5 / count + end)) < _TOLERANCE:
                return False
    return True
