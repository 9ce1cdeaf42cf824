"""Whether tokens are of an image's patches: the grids of a model's convolutions tell, and what became of them.

Queries of a detector and words come in numbers that fit a grid, too. Knows nothing of gradients or layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .spatial import Grid

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

    def have(self, tokens: Tensor) -> bool:
        """Whether tokens that are read as (B,C,h,w) can be patches; then their grid is noted, too.

        They can if nothing is known, or on a known grid; or on one with merged sides and more channels, as merging
        makes them.
        """
        grid, channels = tuple(tokens.shape[2:]), tokens.shape[1]
        known = not self.channels or grid in self.channels
        if known or any(merged(before, grid) and channels > fewest for before, fewest in self.channels.items()):
            if self.channels:
                self._keep(grid, channels)
            return True
        return False

    def _keep(self, grid: Grid, channels: int) -> None:
        self.channels[grid] = min(channels, self.channels.get(grid, channels))


def merged(before: Grid, after: Grid) -> bool:
    """Whether all sides are a half or a quarter of what they were, rounded either way."""
    return len(before) == len(after) and any(
        all(few in (many >> by, -(-many >> by)) for many, few in zip(before, after, strict=True)) for by in _MERGED
    )
