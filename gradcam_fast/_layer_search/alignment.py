"""Whether a map shows the whole image as it lies: no part of it, nothing mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .._layout.trial_layouts import at_position
from .graph_walk import leaves_behind

if TYPE_CHECKING:
    from torch import Tensor

    from .traced_map import TracedMap

__all__ = ["is_aligned"]

# How far from its place (as a part of the side) the middle of what a position sees may lie: borders cut off some of it.
_TOLERANCE = 0.25


def is_aligned(maps: Sequence[TracedMap], traced: TracedMap, images: Tensor) -> bool:
    """Whether the first and the last position of a map see the images where these positions are.

    Args:
        maps: of the trial run that made the map.
        traced: the map.
        images: (B,C,h,w), the leaf that they come from.
    """
    sides = traced.layout(traced.leaf).shape[2:]
    for end in (0, -1):
        values = torch.randn(traced.shape, dtype=traced.leaf.dtype, device=traced.leaf.device)
        seen = _seen(maps, traced, at_position(values, traced.layout, end), images)
        if not seen.any():
            return False
        for axis, count in enumerate(sides):
            along = seen.movedim(axis, -1).reshape(-1, seen.shape[axis]).sum(0)
            places = (torch.arange(len(along), device=along.device) + 0.5) / len(along)
            middle = float((along * places).sum() / along.sum())
            if abs(middle - abs(0.5 / count + end)) > _TOLERANCE:
                return False
    return True


def _seen(maps: Sequence[TracedMap], traced: TracedMap, gradient: Tensor, images: Tensor) -> Tensor:
    """How strongly each position of the images goes into a product with the map: (h,w)."""
    place_of = {id(earlier.leaf): place for place, earlier in enumerate(maps)}
    waiting = {place_of[id(traced.leaf)]: gradient}
    at_images = torch.zeros_like(images)
    while waiting:
        place = max(waiting)
        gradient, behind = waiting.pop(place), maps[place].behind
        if behind is None:
            continue
        leaves = [leaf for leaf in leaves_behind(behind.node) if leaf is images or id(leaf) in place_of]
        parts = torch.autograd.grad(behind, leaves, gradient, allow_unused=True, retain_graph=True)
        for leaf, part in zip(leaves, parts, strict=True):
            if part is None:
                continue
            if leaf is images:
                at_images += part
            else:
                earlier = place_of[id(leaf)]
                waiting[earlier] = waiting[earlier] + part if earlier in waiting else part
    return at_images.abs().sum((0, 1)).double()
