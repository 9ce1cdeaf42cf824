"""The layouts of the maps of a trial run, in the order made: the run's graph tells which tokens are patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .feature_layout import FeatureLayout, ImageGeometry, infer_layout, set_channels_last
from .positions import Positions, positions_of
from .token_grid import (
    EXTRA_COUNTS,
    KnownGrids,
    LostPlaces,
    NoPatches,
    PatchTokens,
    UnknownPatches,
    UnreadableLayout,
    infer_grid,
    patch_grid,
    shown,
)
from .token_places import first_tokens, in_image_order, tokens_of_images

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Tokens
    from .token_grid import Grid
    from .token_places import ImageLeaf

__all__ = ["TrialLayouts"]


class TrialLayouts:
    """Reads the layouts of one trial run's maps.

    Args:
        geometry: the images that the model runs on; its ``patch_tokens`` are added to.
        tokens: as in :class:`gradcam_fast.Explainer`.
        leaves_of: the leaves behind a map that depend on the images.

    Attributes:
        unreadable: why the last output of three axes could not be read; empty if there is none.
        lost_places: whether some tokens are patches of the images, but not known which.
    """

    def __init__(self, geometry: ImageGeometry, tokens: Tokens, leaves_of: Callable[[Tensor], list[ImageLeaf]]) -> None:
        self.geometry, self.tokens, self.leaves_of = geometry, tokens, leaves_of
        self.unreadable, self.lost_places = "", False
        self.grids = KnownGrids()

    def read(self, name: str, module: nn.Module, maps: Tensor, *, captured: bool) -> FeatureLayout | None:
        """The layout of what a module returned; None if it is no map of the images.

        Args:
            captured: whether these maps are what a capture of the module keeps; if not, ``unreadable`` is not about
                them.
        """
        try:
            self._check_positions(module, maps)
            layout = self._layout(module, maps)
            if isinstance(module, _ConvNd) and layout.kind == "planes":
                self.grids.add(maps)
            self._check_grid(layout, maps)
        except UnreadableLayout as reason:
            if captured and maps.dim() == 3:
                self.unreadable = f"layer {name!r} returns shape {tuple(maps.shape)}, {reason}"
                self.lost_places |= isinstance(reason, LostPlaces)
            return None
        return layout

    def orient(self, module: nn.Module, maps: Tensor) -> None:
        """Find out of series whether a module returns (B,L,C) or (B,C,L)."""
        if len(self.geometry.size) == 1 and maps.dim() == 3:
            set_channels_last(module, not isinstance(module, _ConvNd) and self._is_channels_last(maps))

    def remember(self, layout: FeatureLayout, maps: Tensor) -> None:
        """Take the grid of tokens that are a feature map for one that later patches may have, merged or not."""
        if layout.inferred_extras is not None:
            self.grids.add(layout(maps))

    def _check_positions(self, module: nn.Module, maps: Tensor) -> None:
        leaves = {id(leaf.values) for leaf in self.leaves_of(maps)} if maps.dim() > 2 else ()
        positions = positions_of(maps.grad_fn, leaves) if leaves else Positions.OF_IMAGES
        picked = positions is Positions.PICKED
        if positions is Positions.OF_IMAGES or (picked and self.tokens != "auto"):
            return
        reason = NoPatches(f"whose positions are {positions.value}", lost=picked)
        try:
            infer_layout(module, maps, self.geometry, self.tokens)
        except UnknownPatches as unknown:
            assert self.geometry.patch_tokens is not None
            self.geometry.patch_tokens[unknown.count] = reason
        except UnreadableLayout:
            pass
        raise reason.error()

    def _check_grid(self, layout: FeatureLayout, maps: Tensor) -> None:
        if layout.inferred_extras is None or (layout.patch_tokens is not None and layout.patch_tokens.told):
            return
        patches = layout(maps)
        if not self.grids.can_be_patches(patches, layout.inferred_extras):
            raise UnreadableLayout(_no_such_grid(tuple(patches.shape[2:])))

    def _layout(self, module: nn.Module, maps: Tensor) -> FeatureLayout:
        try:
            return infer_layout(module, maps, self.geometry, self.tokens)
        except UnknownPatches as unknown:
            leaves = list(map(self._with_layout, self.leaves_of(maps)))
            # Position embeddings come in as many tokens, and tell nothing; those of one image look like its patches.
            if maps.grad_fn is not None and not leaves:
                raise
            known = self.geometry.patch_tokens
            assert known is not None
            known[unknown.count] = self._ask_for_patches(maps, unknown, leaves)
        return infer_layout(module, maps, self.geometry, self.tokens)

    def _is_channels_last(self, maps: Tensor) -> bool:
        """Whether series are (B,L,C): the lengths that they had before tell, or else their order."""
        leaves = list(map(self._with_layout, self.leaves_of(maps)))
        lengths = {leaf.as_maps(leaf.values).shape[-1] for leaf in leaves}
        for extras in (0,), EXTRA_COUNTS:
            fits = [any(side - extra in lengths for extra in extras) for side in maps.shape[1:]]
            if fits[0] != fits[1]:
                return fits[0]
        if maps.grad_fn is None or not leaves:
            return False
        at = first_tokens(maps, leaves)
        in_order = [
            in_image_order(maps, axis, PatchTokens(tuple(range(side)), (side,)), leaves, at)
            for axis, side in enumerate(maps.shape[1:], 1)
        ]
        return bool(in_order[0]) and not in_order[1]

    def _with_layout(self, leaf: ImageLeaf) -> ImageLeaf:
        """The leaf with the layout of the images, if it is the images and their channels are last."""
        shape, size = tuple(leaf.values.shape), self.geometry.size
        if leaf.layout is not None or shape[1:-1] != size or (shape[2:] == size and not self.geometry.channels_last):
            return leaf
        return leaf._replace(layout=FeatureLayout(lambda images: images.movedim(-1, 1), "channels last"))

    def _ask_for_patches(
        self, maps: Tensor, unknown: UnknownPatches, leaves: list[ImageLeaf]
    ) -> PatchTokens | NoPatches:
        """Which tokens are patches, as the graph tells where so many tokens come first, or else their number."""
        count, cut = unknown.count, self.grids.smallest()
        axis = 1 if maps.shape[1] == count else 0
        answer = self._told_patches(maps, axis, leaves)
        if isinstance(answer, PatchTokens):
            return answer
        are_fewer = cut is not None and math.prod(cut) > count
        # Fewer tokens that each see all of the image are sums over it; merged patches see a part.
        if unknown.grid is not None and not answer.lost and not (are_fewer and answer.mixed):
            return PatchTokens(tuple(range(count)), unknown.grid, told=False)
        if (merged := self._behind_the_same_extras(count)) and self._can_be_patches(maps, axis, merged):
            return merged
        if cut is not None and are_fewer and not answer.mixed:
            return NoPatches(
                f"whose {count} tokens are fewer than the {shown(cut)} patches that the model cuts, and which of these "
                "they are is not known; give tokens=(h,w), or a callable that puts them into their places",
                lost=True,
            )
        return NoPatches(str(unknown)) if cut is None and not answer.lost else answer

    def _told_patches(self, maps: Tensor, axis: int, leaves: list[ImageLeaf]) -> PatchTokens | NoPatches:
        """The patches are the tokens that depend on the images, if so many are a grid and in its order."""
        places, at = tokens_of_images(maps, axis, leaves), None
        answer = self._patch_tokens(places or (), maps.shape[axis])
        if leaves and isinstance(answer, NoPatches):
            # What mixes the tokens, as attention and Fourier transforms do, leaves them where they were put.
            at = first_tokens(maps, leaves)
            first = tokens_of_images(maps, axis, leaves, at) if at else places
            if first:
                answer = self._patch_tokens(first, maps.shape[axis])
            elif not places:
                return self._patches_in_order(maps, axis, leaves, mixed=first is not None)
        if isinstance(answer, NoPatches):
            return answer
        in_order = in_image_order(maps, axis, answer, leaves, at)
        if in_order is False:
            described = _described(answer.places, maps.shape[axis])
            reason = f"{described}, but not in the order of the image; give a callable for tokens= that restores it"
            return NoPatches(reason, lost=True)
        if in_order or len(self.grids.of(len(answer.places))) == 1 or self._can_be_patches(maps, axis, answer):
            return answer
        return NoPatches(_no_such_grid(answer.grid))

    def _patches_in_order(
        self, maps: Tensor, axis: int, leaves: list[ImageLeaf], *, mixed: bool
    ) -> PatchTokens | NoPatches:
        """The patches behind as many other tokens as leave them in the order of the image.

        Attention inside patches, as TNT has, hides which tokens depend on the images, but does not mix the patches.
        """
        count, geometry = maps.shape[axis], self.geometry
        for in_front in EXTRA_COUNTS:
            grid = patch_grid(count, geometry.size, geometry.patches, extras=(in_front,))
            if grid is not None:
                patches = PatchTokens(tuple(range(in_front, count)), grid)
                if in_image_order(maps, axis, patches, leaves):
                    return patches
        if mixed:
            return NoPatches(
                f"each of whose {count} tokens is of all of the image, as sums or channels are", mixed=True
            )
        return NoPatches(str(UnknownPatches(count)))

    def _behind_the_same_extras(self, count: int) -> PatchTokens | None:
        """Patches merged by a layer that mixes them, if as many tokens stand in front as before."""
        extras = {
            known.places[0]
            for tokens, known in (self.geometry.patch_tokens or {}).items()
            if isinstance(known, PatchTokens) and known.told and known.places[0] + len(known.places) == tokens
        }
        if len(extras) != 1:
            return None
        (in_front,) = extras
        grid = patch_grid(count, self.geometry.size, self.geometry.patches, extras=(in_front,))
        return None if grid is None else PatchTokens(tuple(range(in_front, count)), grid, told=False)

    def _patch_tokens(self, places: tuple[int, ...], count: int) -> PatchTokens | NoPatches:
        """These of ``count`` tokens as patches on the grid that their number tells."""
        grids, described = self.grids.of(len(places)), _described(places, count)
        if len(grids) == 1:
            return PatchTokens(places, grids[0])
        if len(grids) > 1:
            ways = " or ".join(map(shown, grids))
            return NoPatches(f"{described}, which may be {ways} patches; say which with tokens=(h,w)")
        try:
            return PatchTokens(places, infer_grid(len(places), self.geometry.size, self.geometry.patches, extras=(0,)))
        except UnreadableLayout:
            return NoPatches(f"{described}, which is no grid of patches; give tokens=(h,w), or a callable")

    def _can_be_patches(self, maps: Tensor, axis: int, found: PatchTokens) -> bool:
        planes = found.select(maps, axis).transpose(0, 1) if axis == 0 else found.select(maps, axis)
        patches = planes.transpose(-1, -2).unflatten(-1, found.grid)
        return self.grids.can_be_patches(patches, maps.shape[axis] - len(found.places))


def _described(places: tuple[int, ...], count: int) -> str:
    return f"of whose {count} tokens {len(places)} depend on some of the image's positions"


def _no_such_grid(grid: Grid) -> str:
    return (
        f"whose tokens would be {shown(grid)} patches, but no convolution made such a grid; say which it is with "
        "tokens=..."
    )
