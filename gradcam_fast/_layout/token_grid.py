"""Whether tokens are of an image's patches: the grids of a model's convolutions tell, and what became of them.

Queries of a detector and words come in numbers that fit a grid, too. Knows nothing of gradients or layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .feature_layout import Grid

__all__ = ["Grids"]

# From one grid of patches to the next, sides are merged by two, or by four.
_MERGED = (1, 2)


class Grids:
    """The grids that a forward's convolutions made so far, each with the fewest channels that were seen on it."""

    def __init__(self) -> None:
        self.channels: dict[Grid, int] = {}

    def note(self, maps: Tensor) -> None:
        """What a convolution of the images returned, (B,C,h,w)."""
        self._keep(tuple(maps.shape[2:]), maps.shape[1])

    def have(self, patches: Tensor, others: int) -> bool:
        """Whether tokens that are read as (B,C,h,w), ``others`` in front, can be patches; then the grid is noted, too.

        They can if nothing is known, or on a known grid; or on one with merged sides and more channels, as merging
        makes them, and no more than a class token in front.
        """
        grid, channels = tuple(patches.shape[2:]), patches.shape[1]
        if not self.channels:
            return True
        found = grid in self.channels
        if not found and others <= 1:
            found = any(merged(before, grid) and channels > fewest for before, fewest in self.channels.items())
        if found:
            self._keep(grid, channels)
        return found

    def _keep(self, grid: Grid, channels: int) -> None:
        self.channels[grid] = min(channels, self.channels.get(grid, channels))


def merged(before: Grid, after: Grid) -> bool:
    """Whether all sides are a half or a quarter of what they were, rounded either way."""
    return len(before) == len(after) and any(
        all(few in (many >> by, -(-many >> by)) for many, few in zip(before, after, strict=True)) for by in _MERGED
    )
