"""The grid that a transformer's tokens stand on: inferred from their number, or known from the model's convolutions.

Everything about grids is decided here: which grid N tokens make, whether a grid fits the images, and whether tokens
can be patches at all (a detector's queries and words come in numbers that fit a grid, too).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Grid", "KnownGrids", "UnreadableLayout", "fits", "infer_grid"]

Grid: TypeAlias = tuple[int, ...]

# How many class and register tokens stand before the patches: none, a class token, DeiT's distillation token too, four
# or eight registers with or without a class token.
PREFIX_COUNTS = (0, 1, 2, 4, 5, 8, 9)

# A merging layer makes of a grid of patches one with a half or a quarter of the sides.
_MERGING_SHIFTS = (1, 2)


class UnreadableLayout(ValueError):
    """A layer's output is no feature map of the images; the message says what came and what was expected."""


@lru_cache(maxsize=256)
def fits(grid: Grid, size: Grid) -> bool:
    """Whether one stride makes ``grid`` of images of this size, give or take one sample per side for borders."""
    smallest = max(side / (count + 1) for side, count in zip(size, grid, strict=True))
    largest = min(side / (count - 1) if count > 1 else math.inf for side, count in zip(size, grid, strict=True))
    return smallest < largest


@lru_cache(maxsize=256)
def infer_grid(count: int, size: Grid, patches: tuple[Grid, ...] = ()) -> Grid:
    """The grid of ``count`` tokens on images of this size, some of them class and register tokens in front.

    First the patches that the model's convolutions cut are tried, merged as few times as possible. If none fits, any
    square patch that tiles the images: exact tilings first, then those with a remainder cut off or padded.

    Args:
        count: number of tokens.
        size: (H,W) of the images in pixels.
        patches: strides (h,w) of the model's convolutions.

    Raises:
        UnreadableLayout: no grid fits, or several do.
    """
    for same_in_time, merges in itertools.product((True, False), range(5)):
        grids = {grid for patch in patches for grid in _patch_grids(size, patch, merges, same_in_time)}
        grids = {grid for grid in grids if math.prod(grid) > 1 and count - math.prod(grid) in PREFIX_COUNTS}
        if len(grids) == 1:
            return grids.pop()
        if grids:
            break
    exact: set[tuple[Grid, int]] = set()
    rounded: set[tuple[Grid, int]] = set()
    for patch_side in range(1, max(size) + 1):
        fitting = exact if all(side % patch_side == 0 for side in size) else rounded
        for grid in {tuple(side // patch_side for side in size), tuple(-(-side // patch_side) for side in size)}:
            prefix = count - math.prod(grid)
            if math.prod(grid) > 1 and prefix in PREFIX_COUNTS:
                fitting.add((grid, prefix))
    sides = "x".join(map(str, size))
    for fitting in (exact, rounded):
        if len(fitting) == 1:
            return next(iter(fitting))[0]
        if fitting:
            ways = " or ".join(f"{'x'.join(map(str, grid))} after {prefix}" for grid, prefix in sorted(fitting))
            raise UnreadableLayout(f"whose {count} tokens on {sides} images may be {ways}; say which with tokens=(h,w)")
    raise UnreadableLayout(
        f"whose {count} tokens fit no grid of patches on {sides} images after {PREFIX_COUNTS[0]} to "
        f"{PREFIX_COUNTS[-1]} others; give tokens=(h,w), or a callable"
    )


def _patch_grids(size: Grid, patch: Grid, merges: int, same_in_time: bool) -> Iterator[Grid]:
    """The grids of images cut into patches whose sides were halved ``merges`` times, remainders cut off or padded.

    In time, patches are merged like in space if they are cubes (a volume), and not merged if they are not (a video);
    ``same_in_time=False`` tries the other way.
    """
    merge_time = (len(set(patch)) == 1) == same_in_time
    merges_per_side = (merges,) * len(size) if merge_time else (0, merges, merges)[-len(size) :]
    strides = [step << times for step, times in zip(patch, merges_per_side, strict=True)]
    yield tuple(side // stride for side, stride in zip(size, strides, strict=True))
    yield tuple(-(-side // stride) for side, stride in zip(size, strides, strict=True))


class KnownGrids:
    """The grids that the convolutions of a forward have made so far, each with the fewest channels seen on it."""

    def __init__(self) -> None:
        self.channels: dict[Grid, int] = {}

    def add(self, maps: Tensor) -> None:
        """Remember the grid of a convolution's output (B,C,h,w)."""
        self._remember(tuple(maps.shape[2:]), maps.shape[1])

    def can_be_patches(self, tokens: Tensor, prefix: int) -> bool:
        """Whether tokens, read as (B,C,h,w) after ``prefix`` others, can be patches; if so, their grid is remembered.

        They can on a known grid, or on a merged one (sides halved or quartered, more channels, at most a class token in
        front), or when no convolution has run.
        """
        grid, channels = tuple(tokens.shape[2:]), tokens.shape[1]
        if not self.channels:
            return True
        known = grid in self.channels
        if not known and prefix <= 1:
            known = any(_is_merged(before, grid) and channels > fewest for before, fewest in self.channels.items())
        if known:
            self._remember(grid, channels)
        return known

    def _remember(self, grid: Grid, channels: int) -> None:
        self.channels[grid] = min(channels, self.channels.get(grid, channels))


def _is_merged(before: Grid, after: Grid) -> bool:
    """Whether all sides are a half, or all a quarter, of what they were, rounded up or down."""
    return len(before) == len(after) and any(
        all(few in (many >> shift, -(-many >> shift)) for many, few in zip(before, after, strict=True))
        for shift in _MERGING_SHIFTS
    )
