"""A trial run of a model: hooks note every feature map in the order made, and cut the graph there."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from .._capture.buffers import preserve_buffers
from .._capture.containers import replace_tensor, tensors_in
from .._capture.kept_graphs import forget_graphs
from .._capture.module_runs import may_be_maps
from .._layout.token_places import ImageLeaf
from .._layout.trial_layouts import TrialLayouts
from .._model.eager import force_eager
from .._model.own_hooks import OwnHooks
from .._model.undo import outside_inference_mode
from .._random_numbers import OwnRandomNumbers
from .graph_walk import LeavesBehind, pictures_behind
from .rules import is_feature_map, passes_on, projects_tokens
from .saved_once import SavedOnce
from .traced_map import TracedMap, stays_in_block

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._capture.request import Request
    from .._layout.feature_layout import FeatureLayout
    from .._model.inputs import Inputs

__all__ = ["Trace", "trial_run"]


@contextmanager
def trial_run(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Runs of the model inside, and the use of their graphs, leave the model and all generators as they are."""
    with (
        outside_inference_mode(),
        preserve_buffers(model, all_modules=True),
        forget_graphs(model, "trial run", restore=True),
        force_eager(),
        OwnRandomNumbers(),
    ):
        yield


@dataclass
class Trace:
    """Forward hooks on all modules that note each new feature map under the name of its outermost module.

    Args:
        names: the dotted name of each module.
        request: what is asked, about the images that the model runs on.
        saves_once: whether what the graph needs is saved once, by hooks, which torch.func does not allow.

    Attributes:
        maps: in execution order.
        images: the leaf that the model gets a copy of.
        layouts: of what the modules return.
        calls: how often each module has run.
        ran: the names of those that have returned what may be maps.
    """

    names: dict[nn.Module, str]
    request: Request
    saves_once: bool = True
    maps: list[TracedMap] = field(default_factory=list)
    images: Tensor = field(init=False)
    layouts: TrialLayouts = field(init=False)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    # Tensors handed onward by identity and version, and the map each is a copy of.
    _onward: dict[tuple[int, int], tuple[weakref.ref[Tensor], TracedMap | None]] = field(default_factory=dict)
    # The last map of each module.
    _by_module: dict[nn.Module, TracedMap] = field(default_factory=dict)
    # The leaves that depend on the images, by identity.
    _image_leaves: dict[int, ImageLeaf] = field(default_factory=dict)
    # The others, which may do so behind a cut.
    _cut_leaves: dict[int, ImageLeaf] = field(default_factory=dict)
    _leaves_behind: LeavesBehind = field(default_factory=LeavesBehind)
    _saved_once: SavedOnce = field(default_factory=SavedOnce)

    @property
    def behind(self) -> dict[int, Node]:
        """Where the graph goes on behind each leaf, by its identity."""
        return {id(traced.leaf): traced.behind.node for traced in self.maps if traced.behind is not None}

    @property
    def of_images(self) -> list[TracedMap]:
        """The maps that depend on the images."""
        return [traced for traced in self.maps if traced.of_images]

    def follow_cuts(self) -> bool:
        """Count maps that are made of detached values as maps of the images; whether there are any."""
        cut = [traced for traced in self.maps if traced.behind_cut and not traced.of_images]
        for traced in cut:
            traced.of_images = True
        return bool(cut)

    def __post_init__(self) -> None:
        # Held weakly: in a circle, the maps and the images would wait for the garbage collector.
        leaves_of = weakref.WeakMethod(self._leaves_of_images)

        def leaves_of_images(maps: Tensor) -> list[ImageLeaf]:
            method = leaves_of()
            return method(maps) if method else []

        self.layouts = TrialLayouts(self.request.geometry, self.request.tokens, leaves_of_images)

    def run(self, model: nn.Module) -> Any:
        """Run the model under the hooks; return its output."""
        with OwnHooks() as hooks:
            hooks.ignore_inner_runs(model)
            for module in self.names:
                # Before the module's own hooks, which may keep its output for later in the forward.
                hooks.add(module, self, first=True)
            with torch.enable_grad(), self._saved_once.hooks() if self.saves_once else nullcontext():
                images = self.request.images
                self.images = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
                self._image_leaves[id(self.images)] = ImageLeaf(self.images, None)
                # A copy of the leaf, so that the model may write into its input.
                inputs = self.request.inputs
                return inputs.replace({inputs.images_at: self.images}).map(torch.Tensor.clone)(model)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Note what ``module`` returned, and hand a copy of it onward."""
        self.calls[module] = self.calls.get(module, 0) + 1
        if may_be_maps(output, self.request.geometry):
            self.ran.add(self.names[module])
        returned = [tensor for tensor in tensors_in(output) if tensor.dtype.is_floating_point]
        if not returned:
            return None
        grad_was_enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        earlier = self._by_module.get(module)
        if earlier is not None and (not returned[0].requires_grad or self._depends_on_images(returned[0])):
            del self._by_module[module]
            earlier.last_call = False
        onward = output
        # Blocks may hand on tokens beside something else: the graph is cut at each, though only the first is captured.
        for tensor in {id(tensor): tensor for tensor in returned}.values():
            copy = self._note(module, args, output, tensor, grad_was_enabled, captured=tensor is returned[0])
            if copy is not tensor:
                onward = replace_tensor(onward, tensor, copy)
        self._leaves_behind.forget()
        return None if onward is output else onward

    def _note(
        self, module: nn.Module, args: Any, output: Any, returned: Tensor, grad_was_enabled: bool, *, captured: bool
    ) -> Tensor:
        """Note one of the tensors in ``output``; return what is to be handed onward in its place."""
        if captured:
            self.layouts.orient(module, returned)
        if self._was_handed_onward(returned):
            traced = self._onward[_identity(returned)][1]
            # A module that also returns something else (a pooled vector) may have made that of the maps.
            if traced is not None and len(tensors_in(output)) == 1:
                self._rename(traced, module)
            return returned
        if passes_on(module) and not any(map(self._was_handed_onward, tensors_in(args))):
            return returned  # the module around it may have made this, a sum say
        maps = returned if returned.requires_grad else returned.detach().requires_grad_()
        of_images, behind_cut = self._depends_on_images(returned), False
        if not of_images and sum(tensor.is_floating_point() for tensor in self.request.inputs.tensors) == 1:
            # The model has turned gradients off, or has detached what the module took. A module that takes a tensor
            # with a graph and returns one without reads its shape only: a position embedding.
            of_images = not grad_was_enabled and not returned.requires_grad
            behind_cut = not of_images and (
                self._depends_on(self._cut_leaves, returned)
                or any(tensor.is_floating_point() and not tensor.requires_grad for tensor in tensors_in(args))
            )
            if not returned.requires_grad and (of_images or behind_cut):
                (self._image_leaves if of_images else self._cut_leaves)[id(maps)] = ImageLeaf(maps, None)
        layout = self.layouts.read(self.names[module], module, maps, captured=captured)
        pictures = self._pictures_of(module, maps, layout) if layout else None
        of_pixels = all(before.layout is None for before in self._leaves_of_images(maps))
        is_map = layout and is_feature_map(module, maps, layout) and (of_pixels or not stays_in_block(module, layout))
        if layout and is_map and (pictures is None or len(pictures) == 1):
            # No memory but one zero: the leaf is added to the maps, so that none of them has to be kept.
            leaf = maps.new_zeros(()).expand_as(maps).requires_grad_()
            (self._image_leaves if of_images else self._cut_leaves)[id(leaf)] = ImageLeaf(leaf, layout)
            traced = TracedMap(
                self.names[module],
                module,
                module,
                maps.shape,
                get_gradient_edge(maps) if returned.requires_grad else None,
                leaf,
                layout,
                of_images,
                of_pixels,
                behind_cut,
                captured=captured,
                call=self.calls[module] - 1,
                pictures=pictures,
            )
            if captured and (of_images or module not in self._by_module):
                self._by_module[module] = traced
            self.maps.append(traced)
            # What a linear layer widens looks like patches that were merged.
            if not projects_tokens(module, layout):
                self.layouts.remember(layout, maps)
            onward = maps.detach() + leaf
            self._saved_once.copied(maps, onward)
        else:
            traced = None
            if pictures is not None and len(pictures) > 1:  # as a recurrent cell does: no call counts as of one picture
                for earlier in (earlier for earlier in self.maps if earlier.module is module):
                    earlier.pictures, earlier.last_call = None, False
            onward = returned if returned.requires_grad else maps.clone()
        self._onward[_identity(onward)] = weakref.ref(onward), traced
        return onward

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

    def _leaves_of_images(self, maps: Tensor) -> list[ImageLeaf]:
        known = self._image_leaves if self._depends_on_images(maps) else self._cut_leaves
        return [known[id(leaf)] for leaf in self._leaves_behind(maps) if id(leaf) in known]

    def _depends_on_images(self, maps: Tensor) -> bool:
        return self._depends_on(self._image_leaves, maps)

    def _depends_on(self, leaves: dict[int, ImageLeaf], maps: Tensor) -> bool:
        return any(id(leaf) in leaves for leaf in self._leaves_behind(maps))

    def _pictures_of(self, module: nn.Module, maps: Tensor, layout: FeatureLayout) -> frozenset[int] | None:
        """Of samples of several pictures, those that maps of one picture a sample are made of; None for maps of all."""
        geometry = self.request.geometry
        if geometry.pictures in (None, 1) or len(layout(maps.detach())) == geometry.all_pictures:
            return None
        if maps.grad_fn is None:  # made without a graph
            return frozenset({self.calls[module] - 1})
        of_one = {id(traced.leaf): traced.pictures for traced in self.maps if traced.pictures is not None}
        return pictures_behind(maps, self._image_leaves, of_one, geometry)


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version
