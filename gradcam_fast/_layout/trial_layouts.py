"""The layouts of the maps of a trial run, in the order made: the run's graph tells which tokens are patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .feature_layout import FeatureLayout, ImageGeometry, infer_layout
from .positions import has_positions_of
from .token_grid import KnownGrids, PatchTokens, UnknownPatches, UnreadableLayout, infer_grid, shown

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Tokens

__all__ = ["ImageLeaf", "TrialLayouts", "at_position"]


class ImageLeaf(NamedTuple):
    """A leaf of the graph behind a map that depends on the images.

    Attributes:
        values: the images themselves, or what stands for an earlier map.
        layout: of that map; None for images.
    """

    values: Tensor
    layout: FeatureLayout | None


class TrialLayouts:
    """Reads the layouts of one trial run's maps.

    Args:
        geometry: the images that the model runs on; its ``patch_tokens`` are added to.
        tokens: as in :class:`gradcam_fast.Explainer`.
        leaves_of: the leaves behind a map that depend on the images.

    Attributes:
        unreadable: why the last output of three axes could not be read; empty if there is none.
    """

    def __init__(self, geometry: ImageGeometry, tokens: Tokens, leaves_of: Callable[[Tensor], list[ImageLeaf]]) -> None:
        self.geometry, self.tokens, self.leaves_of = geometry, tokens, leaves_of
        self.unreadable = ""
        self.grids = KnownGrids()

    def read(self, name: str, module: nn.Module, maps: Tensor) -> FeatureLayout | None:
        """The layout of what a module returned; None if it is no map of the images."""
        try:
            layout = self._layout(module, maps)
        except UnreadableLayout as reason:
            if maps.dim() == 3:
                self._note(name, maps, str(reason))
            return None
        if maps.grad_fn is not None and not self._has_positions(maps):
            self._note(name, maps, "whose positions are no places in the images, but queries, or picked tokens")
            return None
        if isinstance(module, _ConvNd) and layout.kind == "planes":
            self.grids.add(maps)
        if layout.inferred_extras is None or layout.patch_tokens is not None:
            return layout
        patches = layout(maps)
        if self.grids.can_be_patches(patches, layout.inferred_extras):
            return layout
        self._note(name, maps, _no_such_grid(patches))
        return None

    def _has_positions(self, maps: Tensor) -> bool:
        leaves = self.leaves_of(maps)
        return not leaves or has_positions_of(maps.grad_fn, {id(leaf.values) for leaf in leaves})

    def remember(self, layout: FeatureLayout, maps: Tensor) -> None:
        """Take the grid of tokens that are a feature map for one that later patches may have, merged or not."""
        if layout.inferred_extras is not None:
            self.grids.add(layout(maps))

    def _note(self, name: str, maps: Tensor, reason: str) -> None:
        self.unreadable = f"layer {name!r} returns shape {tuple(maps.shape)}, {reason}"

    def _layout(self, module: nn.Module, maps: Tensor) -> FeatureLayout:
        try:
            return infer_layout(module, maps, self.geometry, self.tokens)
        except UnknownPatches as unknown:
            leaves = self.leaves_of(maps)
            # Position embeddings come in as many tokens, and tell nothing; those of one image look like its patches.
            if maps.grad_fn is not None and not leaves:
                raise
            known = self.geometry.patch_tokens
            assert known is not None
            answer = self._ask_for_patches(maps, unknown.count, leaves)
            cut = self.grids.smallest()
            if isinstance(answer, str) and cut is None:
                answer = str(unknown)
            elif isinstance(answer, str) and cut is not None and math.prod(cut) > unknown.count:
                answer = (
                    f"whose {unknown.count} tokens are fewer than the {shown(cut)} patches that the model cuts, and "
                    "which of these they are is not known; give tokens=(h,w), or a callable"
                )
            known[unknown.count] = answer
        return infer_layout(module, maps, self.geometry, self.tokens)

    def _ask_for_patches(self, maps: Tensor, count: int, leaves: list[ImageLeaf]) -> PatchTokens | str:
        """Which tokens are patches: those that depend on the images where so many tokens come first, unmixed."""
        axis = 1 if maps.shape[1] == count else 0
        places, in_order = _tokens_of_images(maps, axis, leaves)
        grids = self.grids.of(len(places))
        described = f"of whose {count} tokens {len(places)} depend on some of the image's positions"
        if not in_order:
            return f"{described}, but not in the order of the image; give a callable for tokens= that restores it"
        if len(grids) == 1:
            return PatchTokens(places, grids[0])
        if len(grids) > 1:
            ways = " or ".join(map(shown, grids))
            return f"{described}, which may be {ways} patches; say which with tokens=(h,w)"
        try:
            grid = infer_grid(len(places), self.geometry.size, self.geometry.patches, extras=(0,))
        except UnreadableLayout:
            return f"{described}, which is no grid of patches; give tokens=(h,w), or a callable"
        found = PatchTokens(places, grid)
        planes = found.select(maps, axis).transpose(0, 1) if axis == 0 else found.select(maps, axis)
        patches = planes.transpose(-1, -2).unflatten(-1, found.grid)
        if self.grids.can_be_patches(patches, count - len(places)):
            return found
        return _no_such_grid(patches)


def _tokens_of_images(maps: Tensor, axis: int, leaves: list[ImageLeaf]) -> tuple[tuple[int, ...], bool]:
    """The tokens that change with some positions of the images: where the Jacobian times a vector is not zero.

    Also, whether the first and the last of them change with the first and the last position.
    """
    if not leaves:
        return (), True
    # The product of the Jacobian is the gradient of its transposed product, which is linear in these.
    cotangent = torch.zeros_like(maps, requires_grad=True)
    transposed = torch.autograd.grad(
        maps, [leaf.values for leaf in leaves], cotangent, create_graph=True, retain_graph=True
    )
    others = [other for other in range(maps.dim()) if other != axis]

    def changed_by(directions: list[Tensor]) -> Tensor:
        total = torch.stack([(part * way).sum() for part, way in zip(transposed, directions, strict=True)]).sum()
        return torch.autograd.grad(total, cotangent, retain_graph=True)[0].abs().sum(others) != 0

    # What came through class tokens of an earlier map is of no position.
    everywhere = [
        leaf.layout.only_positions(torch.randn_like(part)) if leaf.layout else torch.randn_like(part)
        for leaf, part in zip(leaves, transposed, strict=True)
    ]
    first, last = (
        [at_position(way, leaf.layout or _as_planes, end) for way, leaf in zip(everywhere, leaves, strict=True)]
        for end in (0, -1)
    )
    try:
        # A token that changes with the first position and with the last is of all of them, a mean say: no patch.
        by_first, by_last = changed_by(first), changed_by(last)
        changes = changed_by(everywhere) & ~(by_first & by_last)
    except RuntimeError:  # fused attention has no second derivative, and has mixed the tokens
        return (), True
    places = tuple(changes.nonzero()[:, 0].tolist())
    # A remainder of the image that was cut off changes none.
    in_order = all(
        not by_end[changes].any() or bool(by_end[places[end]])
        for by_end, end in ((by_first, 0), (by_last, -1))
        if places
    )
    return places, in_order


def _as_planes(maps: Tensor) -> Tensor:
    return maps


def at_position(values: Tensor, view: Callable[[Tensor], Tensor], end: int) -> Tensor:
    """The values at the first (0) or last (-1) position of feature maps; zeros elsewhere."""
    kept = torch.zeros_like(values)
    place = (slice(None), slice(None)) + (end,) * (view(kept).dim() - 2)
    view(kept)[place] = view(values)[place]
    return kept


def _no_such_grid(patches: Tensor) -> str:
    grid = shown(tuple(patches.shape[2:]))
    return f"whose tokens would be {grid} patches, but no convolution made such a grid; say which it is with tokens=..."
