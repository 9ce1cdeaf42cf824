"""A trial run of a model: hooks note every feature map in the order made, and cut the graph there."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.conv import _ConvNd

from .._capture.buffers import preserve_buffers
from .._capture.containers import feature_tensor, replace_tensor, tensors_in
from .._layout.token_grid import KnownGrids, PatchTokens, UnknownPatches, UnreadableLayout, infer_grid, shown
from .._model.eager import force_eager
from .._model.own_hooks import OwnHooks
from .._model.undo import outside_inference_mode
from .graph_walk import leaves_behind, pictures_behind
from .random_numbers import OwnRandomNumbers
from .rules import is_feature_map, passes_on

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.capture import Request
    from .._layout.feature_layout import FeatureLayout
    from .._model.inputs import Inputs

__all__ = ["Trace", "TracedMap", "trial_run"]


@contextmanager
def trial_run(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Runs of the model inside, and the use of their graphs, leave its buffers and all generators as they are."""
    with (
        outside_inference_mode(),
        preserve_buffers(model, all_modules=True),
        force_eager(),
        OwnRandomNumbers(),
    ):
        yield


@dataclass(eq=False)
class TracedMap:
    """A feature map of a trial run.

    Attributes:
        name: dotted name of the outermost module that returned it.
        module: that module.
        shape: of the maps.
        behind: the graph from here back to the maps before; None if there is none.
        leaf: where the graph of what follows begins.
        layout: how the maps lie.
        of_images: whether the maps depend on the images.
        last_call: whether the module did not run again on the images.
        call: which call of the module in this forward it is.
        pictures: of samples of several pictures, the one that the maps are of; None for maps of all.
    """

    name: str
    module: nn.Module
    shape: torch.Size
    behind: GradientEdge | None
    leaf: Tensor
    layout: FeatureLayout
    of_images: bool
    last_call: bool = True
    call: int = 0
    pictures: frozenset[int] | None = None


@dataclass
class Trace:
    """Forward hooks on all modules that note each new feature map under the name of its outermost module.

    Args:
        names: the dotted name of each module.
        request: what is asked, about the images that the model runs on.

    Attributes:
        maps: in execution order.
        unreadable: why the last output of three axes could not be read; empty if there is none.
        calls: how often each module has run.
    """

    names: dict[nn.Module, str]
    request: Request
    maps: list[TracedMap] = field(default_factory=list)
    unreadable: str = ""
    calls: dict[nn.Module, int] = field(default_factory=dict)
    _grids: KnownGrids = field(default_factory=KnownGrids)
    # Tensors handed onward by identity and version, and the map each is a copy of.
    _onward: dict[tuple[int, int], tuple[weakref.ref[Tensor], TracedMap | None]] = field(default_factory=dict)
    # The last map of each module.
    _by_module: dict[nn.Module, TracedMap] = field(default_factory=dict)
    # The leaves that depend on the images, by identity.
    _of_images: dict[int, Tensor] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Run the model under the hooks; return its output."""
        with OwnHooks() as hooks:
            hooks.ignore_inner_runs(model)
            for module in self.names:
                # Before the module's own hooks, which may keep its output for later in the forward.
                hooks.add(module, self, first=True)
            with torch.enable_grad():
                images = self.request.images.detach().clone().requires_grad_()
                self._of_images[id(images)] = images
                # A copy of the leaf, so that the model may write into its input.
                inputs = self.request.inputs
                return inputs.replace({inputs.images_at: images}).map(torch.Tensor.clone)(model)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Note what ``module`` returned, and hand a copy of it onward."""
        self.calls[module] = self.calls.get(module, 0) + 1
        returned = feature_tensor(output)
        if returned is None:
            return None
        grad_was_enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        earlier = self._by_module.get(module)
        if earlier is not None and (not returned.requires_grad or self._depends_on_images(returned)):
            del self._by_module[module]
            earlier.last_call = False
        if self._was_handed_onward(returned):
            traced = self._onward[_identity(returned)][1]
            # A module that also returns something else (a pooled vector) may have made that of the maps.
            if traced is not None and len(tensors_in(output)) == 1:
                self._rename(traced, module)
            return None
        if passes_on(module) and not any(map(self._was_handed_onward, tensors_in(args))):
            return None  # the module around it may have made this, a sum say
        maps = returned if returned.requires_grad else returned.detach().requires_grad_()
        # Made without a graph: of the images, if the model has turned gradients off or detached what the module took.
        untraceable = len(self.request.inputs.tensors) == 1 and (
            not grad_was_enabled or any(tensor.is_floating_point() for tensor in tensors_in(args))
        )
        if untraceable and not returned.requires_grad:
            self._of_images[id(maps)] = maps
        layout = self._read(module, maps)
        pictures = self._pictures_of(module, maps, layout) if layout else None
        if layout and is_feature_map(module, maps, layout) and (pictures is None or len(pictures) == 1):
            # No memory but one zero: the leaf is added to the maps, so that none of them has to be kept.
            leaf = maps.new_zeros(()).expand_as(maps).requires_grad_()
            of_images = self._depends_on_images(maps) if returned.requires_grad else untraceable
            if of_images:
                self._of_images[id(leaf)] = leaf
            traced = TracedMap(
                self.names[module],
                module,
                maps.shape,
                get_gradient_edge(maps) if returned.requires_grad else None,
                leaf,
                layout,
                of_images,
                call=self.calls[module] - 1,
                pictures=pictures,
            )
            if of_images or module not in self._by_module:
                self._by_module[module] = traced
            self.maps.append(traced)
            onward = maps.detach() + leaf
        else:
            traced = None
            onward = returned if returned.requires_grad else maps.clone()
        self._onward[_identity(onward)] = weakref.ref(onward), traced
        return None if onward is returned else replace_tensor(output, returned, onward)

    def _was_handed_onward(self, tensor: Tensor) -> bool:
        known = self._onward.get(_identity(tensor))
        return known is not None and known[0]() is tensor

    def _rename(self, traced: TracedMap, module: nn.Module) -> None:
        """Name a map after a module around the one that made it: one activation may stand in many blocks."""
        if any(inner is traced.module for inner in module.modules()):
            if self._by_module.get(traced.module) is traced:
                del self._by_module[traced.module]
            self._by_module[module] = traced
            traced.name, traced.module, traced.last_call = self.names[module], module, True
            traced.call = self.calls[module] - 1

    def _depends_on_images(self, maps: Tensor) -> bool:
        return any(id(leaf) in self._of_images for leaf in leaves_behind(maps.grad_fn))

    def _pictures_of(self, module: nn.Module, maps: Tensor, layout: FeatureLayout) -> frozenset[int] | None:
        """Of samples of several pictures, those that maps of one picture a sample are made of; None for maps of all."""
        geometry = self.request.geometry
        if geometry.pictures in (None, 1) or len(layout(maps.detach())) == geometry.all_pictures:
            return None
        if maps.grad_fn is None:  # made without a graph
            return frozenset({self.calls[module] - 1})
        of_one = {id(traced.leaf): traced.pictures for traced in self.maps if traced.pictures is not None}
        return pictures_behind(maps, self._of_images, of_one, geometry)

    def _read(self, module: nn.Module, maps: Tensor) -> FeatureLayout | None:
        try:
            layout = self._layout(module, maps)
        except UnreadableLayout as reason:
            if maps.dim() == 3:
                self.unreadable = f"layer {self.names[module]!r} returns shape {tuple(maps.shape)}, {reason}"
            return None
        if isinstance(module, _ConvNd) and layout.kind == "planes":
            self._grids.add(maps)
        if layout.inferred_extras is None or layout.patch_tokens is not None:
            return layout
        patches = layout(maps)
        if self._grids.can_be_patches(patches, layout.inferred_extras):
            return layout
        self.unreadable = f"layer {self.names[module]!r} returns shape {tuple(maps.shape)}, " + _no_such_grid(patches)
        return None

    def _layout(self, module: nn.Module, maps: Tensor) -> FeatureLayout:
        try:
            return self.request.layout(module, maps)
        except UnknownPatches as unknown:
            # Position embeddings come in as many tokens, and tell nothing; those of one image look like its patches.
            if maps.grad_fn is not None and not self._depends_on_images(maps):
                raise
            known = self.request.geometry.patch_tokens
            assert known is not None
            answer = self._ask_for_patches(maps, unknown.count)
            cut = self._grids.smallest()
            if isinstance(answer, str) and cut is None:
                answer = str(unknown)
            elif isinstance(answer, str) and cut is not None and math.prod(cut) > unknown.count:
                answer = (
                    f"whose {unknown.count} tokens are fewer than the {shown(cut)} patches that the model cuts, and "
                    "which of these they are is not known; give tokens=(h,w), or a callable"
                )
            known[unknown.count] = answer
        return self.request.layout(module, maps)

    def _ask_for_patches(self, maps: Tensor, count: int) -> PatchTokens | str:
        """Which tokens are patches: those that depend on the images where so many tokens come first, unmixed."""
        axis = 1 if maps.shape[1] == count else 0
        places, in_order = self._tokens_of_images(maps, axis)
        geometry = self.request.geometry
        grids = self._grids.of(len(places))
        described = f"of whose {count} tokens {len(places)} depend on some of the image's positions"
        if not in_order:
            return f"{described}, but not in the order of the image; give a callable for tokens= that restores it"
        if len(grids) == 1:
            return PatchTokens(places, grids[0])
        if len(grids) > 1:
            ways = " or ".join(map(shown, grids))
            return f"{described}, which may be {ways} patches; say which with tokens=(h,w)"
        try:
            found = PatchTokens(places, infer_grid(len(places), geometry.size, geometry.patches, extras=(0,)))
        except UnreadableLayout:
            return f"{described}, which is no grid of patches; give tokens=(h,w), or a callable"
        planes = found.select(maps, axis).transpose(0, 1) if axis == 0 else found.select(maps, axis)
        patches = planes.transpose(-1, -2).unflatten(-1, found.grid)
        if self._grids.can_be_patches(patches, count - len(places)):
            return found
        return _no_such_grid(patches)

    def _tokens_of_images(self, maps: Tensor, axis: int) -> tuple[tuple[int, ...], bool]:
        """The tokens that change with some positions of the images: where the Jacobian times a vector is not zero.

        Also, whether the first and the last of them change with the first and the last position.
        """
        leaves = [leaf for leaf in leaves_behind(maps.grad_fn) if id(leaf) in self._of_images]
        if not leaves:
            return (), True
        # The product of the Jacobian is the gradient of its transposed product, which is linear in these.
        cotangent = torch.zeros_like(maps, requires_grad=True)
        transposed = torch.autograd.grad(maps, leaves, cotangent, create_graph=True, retain_graph=True)
        others = [other for other in range(maps.dim()) if other != axis]

        def changed_by(directions: list[Tensor]) -> Tensor:
            total = torch.stack([(part * way).sum() for part, way in zip(transposed, directions, strict=True)]).sum()
            return torch.autograd.grad(total, cotangent, retain_graph=True)[0].abs().sum(others) != 0

        layouts = {id(traced.leaf): traced.layout for traced in self.maps}
        views = [layouts.get(id(leaf), _as_planes) for leaf in leaves]
        # What came through class tokens of an earlier map is of no position.
        everywhere = [
            layouts[id(leaf)].only_positions(torch.randn_like(part)) if id(leaf) in layouts else torch.randn_like(part)
            for leaf, part in zip(leaves, transposed, strict=True)
        ]
        first, last = (
            [_at_position(way, view, end) for way, view in zip(everywhere, views, strict=True)] for end in (0, -1)
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


def _at_position(values: Tensor, view: Callable[[Tensor], Tensor], end: int) -> Tensor:
    """The values at the first (0) or last (-1) position of feature maps; zeros elsewhere."""
    kept = torch.zeros_like(values)
    place = (slice(None), slice(None)) + (end,) * (view(kept).dim() - 2)
    view(kept)[place] = view(values)[place]
    return kept


def _no_such_grid(patches: Tensor) -> str:
    grid = shown(tuple(patches.shape[2:]))
    return f"whose tokens would be {grid} patches, but no convolution made such a grid; say which it is with tokens=..."


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version
