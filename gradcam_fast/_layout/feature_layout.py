"""How a layer's output lies in memory, and its view as feature maps (B,C,h,w): planes, channels last, or tokens.

A layout is a view: it copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .token_grid import NoPatches, PatchTokens, UnknownPatches, UnreadableLayout, fits, infer_grid, patch_grid

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Tokens
    from .token_grid import Grid

__all__ = [
    "FeatureLayout",
    "ImageGeometry",
    "check_tokens",
    "infer_layout",
    "set_channels_last",
]

# Modules whose tokens come before the batch, (N,B,C): remembered, because a batch of N images does not show it.
_TOKENS_FIRST: WeakSet[nn.Module] = WeakSet()
# Of series, which modules return (B,L,C) rather than (B,C,L): any length fits, so that the model has to be asked.
_SERIES_CHANNELS_LAST: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class ImageGeometry:
    """The images that feature maps must match.

    Attributes:
        batch: number of images.
        size: their sides in pixels, (H,W); one side for series, three for volumes.
        patches: strides of the model's convolutions, one of which may be the patch size.
        patch_tokens: by the number of tokens, which of them are patches, or why that cannot be said; what is not in it
            has to be asked of the model. None: the patches are taken to be the last tokens.
        pictures: number of pictures a sample, such as the frames of a clip; None if a sample is one picture.
        picture_axis: the axis of the pictures in the model's input.
        inputs: how many of the model's inputs are images of this shape; a model may run a layer on all of them at once.
        transposed: whether the model turns inputs (B,W,H) into these images, so that its maps are turned back.
        channels_last: whether maps that may be either have their channels last: the images are rows of features
            (B,L,F), and no convolution puts channels first.
    """

    batch: int
    size: Grid
    patches: tuple[Grid, ...] = ()
    patch_tokens: dict[int, PatchTokens | NoPatches] | None = None
    pictures: int | None = None
    picture_axis: int = 1
    inputs: int = 1
    transposed: bool = False
    channels_last: bool = False

    @property
    def all_pictures(self) -> int:
        """How many pictures there are in the batch."""
        return self.batch * (self.pictures or 1)

    @property
    def all_inputs(self) -> int:
        """How many images of this shape there are in all inputs of the model."""
        return self.batch * self.inputs

    @property
    def axes(self) -> str:
        """The letters of the maps' sides, for messages."""
        return {1: "l", 2: "h,w", 3: "d,h,w"}[len(self.size)]


@dataclass(frozen=True)
class FeatureLayout:
    """The view of a layer's output (B,...), or of its gradients for K targets (B,K,...), as (B[,K],C,h,w).

    Gradients of tokens that come before the batch, (N,B,C), are (N,K,B,C).

    Attributes:
        view: the function that makes the view.
        kind: "planes", "channels last", "tokens" or "callable".
        fits: whether the grid has the proportions of the images.
        inferred_extras: number of tokens that are no patches, if that number and the grid were inferred.
        patch_tokens: which tokens are patches, if these are not simply the last.
        token_axis: the axis of the tokens in the layer's output.
    """

    view: Callable[[Tensor], Tensor]
    kind: str
    fits: bool = True
    inferred_extras: int | None = None
    patch_tokens: PatchTokens | None = None
    token_axis: int = 1

    def __call__(self, maps: Tensor) -> Tensor:
        return self.view(maps)

    def put(self, output: Tensor, maps: Tensor) -> Tensor:
        """The layer's output (B,...) with its positions replaced by ``maps`` (B,C,h,w); what is no position stays."""
        if self.kind == "planes":
            return maps
        if self.kind != "callable" and self.patch_tokens is None:
            filled = output.clone()
            self.view(filled).copy_(maps)
            return filled
        # The derivative of a view puts values back to where it reads them.
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            view = self.view(leaf)
        (values,) = torch.autograd.grad(view, leaf, maps, retain_graph=True)
        (read,) = torch.autograd.grad(view, leaf, torch.ones_like(maps))
        return torch.where(read != 0, values, output)

    def only_positions(self, gradient: Tensor) -> Tensor:
        """A gradient of the layer's output with zeros for what is no position: class and register tokens, words."""
        if self.kind != "tokens":
            return gradient
        kept = torch.zeros_like(gradient)
        if self.patch_tokens is None:
            self.view(kept).copy_(self.view(gradient))
        else:
            places = torch.tensor(self.patch_tokens.places, dtype=torch.int64, device=gradient.device)
            kept.index_copy_(self.token_axis, places, gradient.index_select(self.token_axis, places))
        return kept


def check_tokens(tokens: Any) -> Tokens:
    """Refuse a value of ``tokens=`` that is neither "auto", a grid nor a callable."""
    if callable(tokens) or (isinstance(tokens, str) and tokens == "auto"):
        return tokens
    if isinstance(tokens, (tuple, list)) and 1 <= len(tokens) <= 3 and all(map(_is_side, tokens)):
        return tuple(tokens)
    raise ValueError(
        f"tokens={tokens!r} is no grid; give 'auto', the grid (h,w) of the tokens, or a callable that turns what the "
        "layer returns into (B,C,h,w)"
    )


def _is_side(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def infer_layout(module: nn.Module, maps: Tensor, geometry: ImageGeometry, tokens: Tokens = "auto") -> FeatureLayout:
    """The layout of ``maps``, the output of ``module``.

    Of samples of several pictures, the maps may be those of all pictures, (B*T,C,h,w) in any order, or of one a sample;
    of several inputs of images, those of all of them.

    Raises:
        UnreadableLayout: they are no maps of the images, or can be read in more than one way.
    """
    if geometry.pictures is not None and geometry.all_pictures in maps.shape[: 2 if maps.dim() == 3 else 1]:
        geometry = replace(geometry, batch=geometry.all_pictures, pictures=None)
    elif geometry.inputs > 1 and len(maps) == geometry.all_inputs and geometry.batch not in maps.shape[:2]:
        geometry = replace(geometry, batch=geometry.all_inputs)
    rank, batch = len(geometry.size), geometry.batch
    if callable(tokens):
        return _layout_by_callable(tokens, maps, geometry)
    # nn.TransformerEncoder's default is (N,B,C).
    tokens_first = maps.dim() == 3 and maps.shape[1] == batch and (len(maps) != batch or module in _TOKENS_FIRST)
    if maps.dim() < 2 or (len(maps) != batch and not tokens_first):
        raise _no_maps(geometry)
    if _is_unknown_series(module, maps, geometry, tokens):
        raise UnknownPatches(maps.shape[1])
    if maps.dim() == rank + 2 and not tokens_first:
        channels_last = _channels_last(module, maps, geometry, tokens)
        grid = tuple(maps.shape[1:-1] if channels_last else maps.shape[2:])
        if rank > 1 or not channels_last:
            if math.prod(grid) < 2:
                raise _no_maps(geometry)
            if tokens not in ("auto", grid):
                raise UnreadableLayout(f"which does not have the grid tokens={tokens}")
            proportional = fits(grid, geometry.size)
            if not channels_last:
                return FeatureLayout(lambda maps: maps, "planes", proportional)
            return FeatureLayout(lambda maps: maps.movedim(-1, -1 - rank), "channels last", proportional)
    if maps.dim() != 3:
        raise _no_maps(geometry)
    layout = _token_layout(maps.shape[0 if tokens_first else 1], geometry, tokens, tokens_first=tokens_first)
    if tokens_first:
        _TOKENS_FIRST.add(module)
    return layout


def _token_layout(count: int, geometry: ImageGeometry, tokens: Any, *, tokens_first: bool) -> FeatureLayout:
    axis = 0 if tokens_first else 1
    known = None if isinstance(tokens, tuple) else (geometry.patch_tokens or {}).get(count)
    if isinstance(known, NoPatches):
        raise known.error()
    extras: int | None
    if isinstance(tokens, tuple):
        grid, extras = tokens, None
    elif known is not None:
        grid, extras = known.grid, count - len(known.places)
    else:
        grid = _count_grid(count, geometry)
        extras = count - math.prod(grid)
    rank, prefix = len(geometry.size), count - math.prod(grid)
    if prefix < 0 or len(grid) != rank:
        raise UnreadableLayout(f"whose {count} tokens do not hold the grid tokens={grid} of {rank}-D images")

    def view(maps: Tensor) -> Tensor:
        # (B,K,N,C) are gradients of K targets; (N,K,B,C) those of tokens that come before the batch.
        token_axis = 0 if tokens_first else maps.dim() - 2
        patches = maps.narrow(token_axis, prefix, count - prefix) if known is None else known.select(maps, token_axis)
        if tokens_first:
            patches = patches.transpose(0, -2)
        return patches.transpose(-1, -2).unflatten(-1, grid)

    return FeatureLayout(view, "tokens", inferred_extras=extras, patch_tokens=known, token_axis=axis)


def _count_grid(count: int, geometry: ImageGeometry) -> Grid:
    """The grid of so many tokens, told by their number alone.

    Raises:
        UnknownPatches: the model is to be asked which of them are patches, and whether they are in order.
    """
    if geometry.patch_tokens is None:
        return infer_grid(count, geometry.size, geometry.patches)
    grid = patch_grid(count, geometry.size, geometry.patches, extras=(0,))
    reason = None
    if grid is None:
        try:
            infer_grid(count, geometry.size, geometry.patches)
        except UnreadableLayout as unreadable:
            reason = unreadable
    raise UnknownPatches(count, reason, grid)


def _layout_by_callable(tokens: Callable[[Tensor], Tensor], maps: Tensor, geometry: ImageGeometry) -> FeatureLayout:
    try:
        planes = tokens(maps.detach())
    except Exception as error:
        raise UnreadableLayout(f"for which the callable tokens= raised {type(error).__name__}: {error}") from error
    if not isinstance(planes, torch.Tensor) or planes.dim() != len(geometry.size) + 2 or len(planes) != geometry.batch:
        received = f"shape {tuple(planes.shape)}" if isinstance(planes, torch.Tensor) else f"a {type(planes).__name__}"
        raise UnreadableLayout(
            f"for which the callable tokens= returned {received}, not ({geometry.batch},C,{geometry.axes})"
        )

    def view(values: Tensor) -> Tensor:
        if values.dim() == maps.dim():
            return tokens(values)
        return torch.stack([tokens(gradients) for gradients in values.unbind(1)], 1)

    return FeatureLayout(view, "callable")


def _channels_last(module: nn.Module, maps: Tensor, geometry: ImageGeometry, tokens: Tokens) -> bool:
    """Whether channels are the last axis: the module's norm says so, or else the grid that fits the images."""
    if isinstance(tokens, tuple):
        return tuple(maps.shape[2:]) != tokens and tuple(maps.shape[1:-1]) == tokens
    if tuple(getattr(module, "normalized_shape", ())) == tuple(maps.shape[-1:]):
        return True
    if len(geometry.size) == 1 and not geometry.channels_last:
        return _SERIES_CHANNELS_LAST.get(module, False)
    # Of videos without their frames: time has a stride of its own.
    planes, last = (tuple(grid)[-2:] for grid in (maps.shape[2:], maps.shape[1:-1]))
    may_be_first = not geometry.channels_last and fits(planes, geometry.size[-2:])
    return not may_be_first and fits(last, geometry.size[-2:])


def set_channels_last(module: nn.Module, channels_last: bool) -> None:
    """Remember whether a module returns series as (B,L,C)."""
    _SERIES_CHANNELS_LAST[module] = channels_last


def _is_unknown_series(module: nn.Module, maps: Tensor, geometry: ImageGeometry, tokens: Tokens) -> bool:
    """Whether a module returns (B,L,C) or (B,C,L), no trial run having told which."""
    if len(geometry.size) > 1 or maps.dim() != 3 or tokens != "auto" or geometry.channels_last:
        return False
    # After a trial run there is an answer for some number of tokens.
    return geometry.patch_tokens == {} and module not in _SERIES_CHANNELS_LAST and not isinstance(module, _ConvNd)


def _no_maps(geometry: ImageGeometry) -> UnreadableLayout:
    return UnreadableLayout(
        f"not spatial feature maps ({geometry.batch},C,{geometry.axes}) with more than one position, nor tokens "
        f"({geometry.batch},N,C) or (N,{geometry.batch},C)"
    )
