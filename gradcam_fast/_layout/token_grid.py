"""The grid that a transformer's tokens stand on: inferred from their number, or known from the model's convolutions.

Everything about grids is decided here: which grid N tokens make, whether a grid fits the images, and whether tokens
can be patches at all (a detector's queries and words come in numbers that fit a grid, too).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EXTRA_COUNTS",
    "Grid",
    "KnownGrids",
    "LostPlaces",
    "NoPatches",
    "PatchTokens",
    "UnknownPatches",
    "UnreadableLayout",
    "fits",
    "infer_grid",
    "patch_grid",
    "shown",
]

Grid: TypeAlias = tuple[int, ...]

# How many class and register tokens there may be: none, a class token, DeiT's distillation token too, four or eight
# registers with or without a class token.
EXTRA_COUNTS = (0, 1, 2, 4, 5, 8, 9)

# A merging layer makes of a grid of patches one with a half or a quarter of the sides.
_MERGING_SHIFTS = (1, 2)


class UnreadableLayout(ValueError):
    """A layer's output is no feature map of the images; the message says what came and what was expected."""


class UnknownPatches(UnreadableLayout):
    """The model has not been asked yet which of the tokens are patches, and whether they are in order.

    Attributes:
        count: the number of tokens.
        grid: of the patches, if all tokens may be.
    """

    def __init__(self, count: int, reason: object = None, grid: Grid | None = None) -> None:
        super().__init__(
            reason or f"of whose {count} tokens it is not known which are patches; give tokens=(h,w), or a callable"
        )
        self.count, self.grid = count, grid


class LostPlaces(UnreadableLayout):
    """The tokens are patches of the images, but it is not known which: they are shuffled, or some are left out."""


@dataclass(frozen=True)
class NoPatches:
    """Why a number of tokens is not read as patches.

    Attributes:
        reason: the end of a sentence that begins with the layer and its shape.
        lost: whether they are patches, but not known which.
        mixed: whether each is known to be of the whole image: tokens that sum up others, or channels.
    """

    reason: str
    lost: bool = False
    mixed: bool = False

    def error(self) -> UnreadableLayout:
        return LostPlaces(self.reason) if self.lost else UnreadableLayout(self.reason)


@dataclass(frozen=True)
class PatchTokens:
    """Which of a number of tokens are patches, in the order of their grid.

    Attributes:
        places: of the patches among the tokens, rising.
        grid: (h,w) of the patches.
        told: whether the model's graph told; if not, only their number does.
    """

    places: tuple[int, ...]
    grid: Grid
    told: bool = True

    def select(self, tokens: Tensor, axis: int) -> Tensor:
        """The patches among ``tokens``; a view if they lie beside each other."""
        first, count = self.places[0], len(self.places)
        if self.places[-1] - first + 1 == count:
            return tokens.narrow(axis, first, count)
        places = torch.tensor(self.places, dtype=torch.int64, device=tokens.device)
        return tokens.index_select(axis, places)


def shown(grid: Grid) -> str:
    """A grid as messages name it: 14x14."""
    return "x".join(map(str, grid))


@lru_cache(maxsize=256)
def fits(grid: Grid, size: Grid) -> bool:
    """Whether one stride makes ``grid`` of images of this size, give or take one sample per side for borders."""
    smallest = max(side / (count + 1) for side, count in zip(size, grid, strict=True))
    largest = min(side / (count - 1) if count > 1 else math.inf for side, count in zip(size, grid, strict=True))
    return smallest < largest


@lru_cache(maxsize=256)
def infer_grid(count: int, size: Grid, patches: tuple[Grid, ...] = (), extras: tuple[int, ...] = EXTRA_COUNTS) -> Grid:
    """The grid of ``count`` tokens on images of this size, some of which are class and register tokens.

    First the patches that the model's convolutions cut are tried, merged as few times as possible. If none fits, any
    square patch that tiles the images: exact tilings first, then those with a remainder cut off or padded.

    Args:
        count: number of tokens.
        size: (H,W) of the images in pixels.
        patches: strides (h,w) of the model's convolutions.
        extras: how many tokens may be no patches.

    Raises:
        UnreadableLayout: no grid fits, or several do.
    """
    grid = patch_grid(count, size, patches, extras)
    if grid is not None:
        return grid
    exact: set[tuple[Grid, int]] = set()
    rounded: set[tuple[Grid, int]] = set()
    for patch_side in range(1, max(size) + 1):
        fitting = exact if all(side % patch_side == 0 for side in size) else rounded
        for grid in {tuple(side // patch_side for side in size), tuple(-(-side // patch_side) for side in size)}:
            prefix = count - math.prod(grid)
            if math.prod(grid) > 1 and prefix in extras:
                fitting.add((grid, prefix))
    sides = shown(size)
    for fitting in (exact, rounded):
        if len(fitting) == 1:
            return next(iter(fitting))[0]
        if fitting:
            ways = " or ".join(f"{shown(grid)} after {prefix}" for grid, prefix in sorted(fitting))
            raise UnreadableLayout(f"whose {count} tokens on {sides} images may be {ways}; say which with tokens=(h,w)")
    raise UnreadableLayout(
        f"whose {count} tokens fit no grid of patches on {sides} images after {extras[0]} to "
        f"{extras[-1]} others; give tokens=(h,w), or a callable"
    )


def patch_grid(count: int, size: Grid, patches: tuple[Grid, ...], extras: tuple[int, ...]) -> Grid | None:
    """The grid of the patches that the model's convolutions cut, merged as few times as possible; None if none fits."""
    for same_in_time, merges in itertools.product((True, False), range(5)):
        grids = {grid for patch in patches for grid in _patch_grids(size, patch, merges, same_in_time)}
        grids = {grid for grid in grids if math.prod(grid) > 1 and count - math.prod(grid) in extras}
        if grids:
            return grids.pop() if len(grids) == 1 else None
    return None


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
    """The grids of the convolutions and the patches of a forward so far, each with the fewest channels seen on it."""

    def __init__(self) -> None:
        self.channels: dict[Grid, int] = {}

    def add(self, maps: Tensor) -> None:
        """Remember the grid of maps (B,C,h,w): a convolution's output, or tokens that can be patches."""
        grid, channels = tuple(maps.shape[2:]), maps.shape[1]
        self.channels[grid] = min(channels, self.channels.get(grid, channels))

    def can_be_patches(self, tokens: Tensor, prefix: int) -> bool:
        """Whether tokens, read as (B,C,h,w) after ``prefix`` others, can be patches.

        They can on a known grid, or on a merged one (sides halved or quartered, more channels, at most a class token in
        front), or when no convolution has run.
        """
        grid, channels = tuple(tokens.shape[2:]), tokens.shape[1]
        if not self.channels:
            return True
        return grid in self.channels or (
            prefix <= 1
            and any(_is_merged(before, grid) and channels > fewest for before, fewest in self.channels.items())
        )

    def smallest(self) -> Grid | None:
        """The grid of the fewest patches; None if no convolution has run."""
        return min((grid for grid in self.channels if math.prod(grid) > 1), key=math.prod, default=None)

    def of(self, count: int) -> list[Grid]:
        """The grids of so many positions."""
        return [grid for grid in self.channels if math.prod(grid) == count]


def _is_merged(before: Grid, after: Grid) -> bool:
    """Whether all sides are a half, or all a quarter, of what they were, rounded up or down; time may stay."""
    if len(before) == len(after) == 3 and before[0] == after[0]:
        before, after = before[1:], after[1:]
    return len(before) == len(after) and any(
        all(few in (many >> shift, -(-many >> shift)) for many, few in zip(before, after, strict=True))
        for shift in _MERGING_SHIFTS
    )
