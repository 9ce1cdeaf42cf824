"""Reading what a layer returned as feature maps (B,C,h,w): planes, channels last, or tokens. A layout copies nothing.

Knows nothing of models beyond the module that made the maps, and nothing of gradients or formulas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn

from ..ops.arguments import is_integer

if TYPE_CHECKING:
    from torch import Tensor

    Tokens = str | tuple[int, ...] | Callable[[Tensor], Tensor]
    Grid = tuple[int, ...]

__all__ = ["FeatureLayout", "ImageGeometry", "UnreadableLayout", "check_tokens", "read"]

# Class and register tokens before the patches, as vision transformers have them: none, a class token, that of DeiT's
# distillation too, four or eight registers, each with a class token or without.
PREFIXES = (0, 1, 2, 4, 5, 8, 9)


# Modules whose tokens come before the batch.
_TOKENS_FIRST: WeakSet[nn.Module] = WeakSet()


class UnreadableLayout(ValueError):
    """No feature maps of the images; the message says what came and what was expected, and the caller says where."""


@dataclass(frozen=True)
class ImageGeometry:
    """The images that the maps should be of: how many, and their sides (H,W), or one side or three.

    And the sides of the patches into which the model may cut them.
    """

    batch: int
    size: Grid
    patches: tuple[Grid, ...] = ()

    @property
    def axes(self) -> str:
        """The letters of the maps' axes."""
        return {1: "l", 2: "h,w", 3: "d,h,w"}[len(self.size)]


@dataclass(frozen=True)
class FeatureLayout:
    """Turns what the layer returned, (B,...), or its gradients for K targets, (B,K,...), into (B[,K],C,h,w).

    Of tokens that come before the batch, (N,B,C), the gradients are (N,K,B,C).
    """

    view: Callable[[Tensor], Tensor]
    layout: str
    # Whether the grid has the proportions of the images.
    fits: bool = True
    # How many tokens are in front of the patches, if that and the grid were inferred from their number.
    inferred: int | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        return self.view(maps)


def check_tokens(tokens: Any) -> Tokens:
    """Refuse a choice of ``tokens`` that cannot be one."""
    if callable(tokens) or (isinstance(tokens, str) and tokens == "auto"):
        return tokens
    if isinstance(tokens, (tuple, list)) and 1 <= len(tokens) <= 3 and all(map(is_integer, tokens)) and min(tokens) > 0:
        return tuple(tokens)
    raise ValueError(
        f"tokens={tokens!r} is no grid; give 'auto', the grid (h,w) of the tokens, or a callable that turns what the "
        "layer returns into (B,C,h,w)"
    )


def read(module: nn.Module, maps: Tensor, geometry: ImageGeometry, tokens: Tokens = "auto") -> FeatureLayout:
    """How ``maps``, which ``module`` returned, lie.

    Raises:
        UnreadableLayout: they are no maps of the images, or may be read in more than one way.
    """
    rank, batch = len(geometry.size), geometry.batch
    if callable(tokens):
        return _called(tokens, maps, geometry)
    # As nn.TransformerEncoder has them unless it is told otherwise. Of as many tokens as images it is remembered.
    tokens_first = maps.dim() == 3 and maps.shape[1] == batch and (len(maps) != batch or module in _TOKENS_FIRST)
    if maps.dim() < 2 or (len(maps) != batch and not tokens_first):
        raise _not_maps(geometry)
    if maps.dim() == rank + 2 and not tokens_first:
        last = _channels_last(module, maps, geometry, tokens)
        grid = tuple(maps.shape[1:-1] if last else maps.shape[2:])
        if rank > 1 or not last:
            if math.prod(grid) < 2:
                raise _not_maps(geometry)
            if tokens not in ("auto", grid):
                raise UnreadableLayout(f"which does not have the grid tokens={tokens}")
            if not last:
                return FeatureLayout(lambda maps: maps, "planes", fits(grid, geometry.size))
            return FeatureLayout(lambda maps: maps.movedim(-1, -1 - rank), "channels last", fits(grid, geometry.size))
    if maps.dim() != 3:
        raise _not_maps(geometry)
    if tokens_first:
        _TOKENS_FIRST.add(module)
    count = maps.shape[0 if tokens_first else 1]
    grid = tokens if isinstance(tokens, tuple) else grid_of(count, geometry.size, geometry.patches)
    prefix = count - math.prod(grid)
    if prefix < 0 or len(grid) != rank:
        raise UnreadableLayout(f"whose {count} tokens do not hold the grid tokens={grid} of {rank}-D images")

    def view(given: Tensor) -> Tensor:
        given = given[prefix:].transpose(0, -2) if tokens_first else given[..., prefix:, :]
        return given.transpose(-1, -2).unflatten(-1, grid)

    return FeatureLayout(view, "tokens", inferred=prefix if tokens == "auto" else None)


def _not_maps(geometry: ImageGeometry) -> UnreadableLayout:
    return UnreadableLayout(
        f"not spatial feature maps ({geometry.batch},C,{geometry.axes}) with more than one position, nor tokens "
        f"({geometry.batch},N,C) or (N,{geometry.batch},C)"
    )


def _called(tokens: Callable[[Tensor], Tensor], maps: Tensor, geometry: ImageGeometry) -> FeatureLayout:
    try:
        made = tokens(maps.detach())
    except Exception as error:
        raise UnreadableLayout(f"of which tokens= makes {type(error).__name__}: {error}") from error
    if not isinstance(made, torch.Tensor) or made.dim() != len(geometry.size) + 2 or len(made) != geometry.batch:
        what = f"shape {tuple(made.shape)}" if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
        raise UnreadableLayout(f"of which tokens= made {what}, not ({geometry.batch},C,{geometry.axes})")

    def view(given: Tensor) -> Tensor:
        if given.dim() == maps.dim():
            return tokens(given)
        return torch.stack([tokens(each) for each in given.unbind(1)], 1)

    return FeatureLayout(view, "as tokens= says")


def _channels_last(module: nn.Module, maps: Tensor, geometry: ImageGeometry, tokens: Tokens) -> bool:
    """Whether channels are the last axis: the module's norm says so, or else the grid that the images' sides allow."""
    if isinstance(tokens, tuple):
        return tuple(maps.shape[2:]) != tokens and tuple(maps.shape[1:-1]) == tokens
    if tuple(getattr(module, "normalized_shape", ())) == tuple(maps.shape[-1:]):
        return True
    return not fits(tuple(maps.shape[2:]), geometry.size) and fits(tuple(maps.shape[1:-1]), geometry.size)


@lru_cache(maxsize=256)
def fits(grid: Grid, size: Grid) -> bool:
    """Whether one stride, give or take a sample per side for borders, makes ``grid`` of images of this size."""
    least = max(side / (count + 1) for side, count in zip(size, grid, strict=True))
    most = min(side / (count - 1) if count > 1 else math.inf for side, count in zip(size, grid, strict=True))
    return least < most


def _cut(size: Grid, patch: Grid, times: int, likely: bool) -> Iterator[Grid]:
    """The grids of images cut into patches that are merged by two so many times, cut off or padded.

    Frames are likely to be merged, too, if patches have as many of them as pixels: those of a volume, not of a video.
    """
    frames = (len(set(patch)) == 1) == likely
    merged = (times,) * len(size) if frames else (0, times, times)[-len(size) :]
    steps = [step << by for step, by in zip(patch, merged, strict=True)]
    yield tuple(side // step for side, step in zip(size, steps, strict=True))
    yield tuple(-(-side // step) for side, step in zip(size, steps, strict=True))


@lru_cache(maxsize=256)
def grid_of(count: int, size: Grid, patches: tuple[Grid, ...] = ()) -> Grid:
    """The grid of ``count`` tokens of images of this size, class and register tokens in front of it set aside.

    That of the patches the model may cut, or of these merged, as little as will do. If none fits, one patch side tiles
    the images: exactly, or with a remainder cut off or padded. Exact tilings are considered first, whatever tokens are
    in front.

    Raises:
        UnreadableLayout: no such grid, or several.
    """
    for likely, times in itertools.product((True, False), range(5)):
        cut = {grid for patch in patches for grid in _cut(size, patch, times, likely)}
        cut = {grid for grid in cut if math.prod(grid) > 1 and count - math.prod(grid) in PREFIXES}
        if len(cut) == 1:
            return cut.pop()
        if cut:
            break
    found: dict[bool, set[tuple[Grid, int]]] = {True: set(), False: set()}
    for patch in range(1, max(size) + 1):
        exact = all(side % patch == 0 for side in size)
        for grid in {tuple(side // patch for side in size), tuple(-(-side // patch) for side in size)}:
            prefix = count - math.prod(grid)
            if math.prod(grid) > 1 and prefix in PREFIXES:
                found[exact].add((grid, prefix))
    sides = "x".join(map(str, size))
    for fitting in (found[True], found[False]):
        if len(fitting) == 1:
            return next(iter(fitting))[0]
        if fitting:
            ways = " or ".join(f"{'x'.join(map(str, grid))} after {prefix}" for grid, prefix in sorted(fitting))
            raise UnreadableLayout(f"whose {count} tokens on {sides} images may be {ways}; say which with tokens=(h,w)")
    raise UnreadableLayout(
        f"whose {count} tokens fit no grid of patches on {sides} images after {PREFIXES[0]} to {PREFIXES[-1]} others; "
        "give tokens=(h,w), or a callable"
    )
