"""From a request about a batch to its evidence: one forward, the scores, and their gradients at the layers.

Puts together capture, spatial, outputs, gradients and finding; knows nothing of formulas, heatmaps or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import CellType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn

from .._layer_search import search as finding
from .._layout import feature_layout as spatial
from .._layout.feature_layout import ImageGeometry
from .._model.eager import force_eager
from ..exceptions import LayerError, NotSpatial
from . import hooks as capture
from . import scores as outputs
from .gradients import differentiate
from .image_selection import images_chosen

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import Tokens
    from .._model.inputs import Inputs
    from .._model.target_layer import TargetLayer
    from .image_selection import When

__all__ = ["Capture", "Request", "capture_after_search", "capture_or_search"]


@dataclass(frozen=True)
class Request:
    """What is asked of a model about one batch, checked."""

    inputs: Inputs
    geometry: ImageGeometry
    target: Any
    topk: int | None
    output: Callable[[Any], Tensor] | None
    tokens: Tokens
    when: When | None = None

    def score(self, returned: Any) -> tuple[Any, Tensor, Tensor | None]:
        """The logits in what the model returned, the scores to explain and their classes."""
        whole = callable(self.target) and self.output is None
        logits = returned if whole else outputs.pick_logits(returned, self.output)
        return logits, *outputs.score(logits, self.target, self.topk, self.geometry.batch)

    def picked(self, logits: Any, classes: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The logits (B,N) that the scores are, and their classes, if these are known to be in range."""
        unsure = isinstance(self.target, torch.Tensor) and self.target.device.type != "cpu"
        if classes is None or unsure or not isinstance(logits, torch.Tensor) or logits.dim() != 2:
            return None
        return logits, classes

    def chosen(self, logits: Any) -> Tensor | None:
        """The images to explain, (n,), or None if these are all."""
        if self.when is None:
            return None
        with torch.no_grad():
            return images_chosen(self.when, outputs.detached(logits), self.geometry.batch)

    def read(self, module: nn.Module, maps: Tensor) -> spatial.FeatureLayout:
        """How the maps that a module returned lie."""
        return spatial.read(module, maps, self.geometry, self.tokens)

    @property
    def key(self) -> Any:
        """Requests of one key are about the same layer, as far as can be known beforehand."""
        tokens = _written(self.tokens) if callable(self.tokens) else self.tokens
        target = _written(self.target) if callable(self.target) else None
        return tuple(self.images.shape[1:]), tokens, target, _written(self.output), _held(self.output)

    @property
    def images(self) -> Tensor:
        """The images among the model's inputs."""
        return next(value for value in self.inputs.tensors if value.dim() == len(self.geometry.size) + 2)


@dataclass(frozen=True)
class Capture:
    """What a model said about a batch, and at each layer its feature maps (B,C,h,w) and gradients (B[,K],C,h,w)."""

    logits: Any
    scores: Tensor
    target: Tensor | None
    layers: tuple[str, ...]
    activations: list[Tensor]
    gradients: list[Tensor]
    # Whether the layer was found for another request.
    recalled: bool
    # The images to explain (n,), or None if these are all; of no image no gradients are taken.
    chosen: Tensor | None


# Models that run their trunk under no_grad, say: behind it gradients are on again only if they were on before.
_TURN_GRADIENTS_OFF: WeakSet[nn.Module] = WeakSet()


def capture_or_search(model: nn.Module, request: Request, layers: Sequence[TargetLayer] | None) -> Capture:
    """From the layers named, or else from the one found before, or else from one found now.

    Raises:
        LayerError: a layer that was named cannot be explained.
    """
    if layers:
        return _gathered(model, request, layers)
    known = finding.recall(model, request.key)
    if known is not None:
        try:
            return _gathered(model, request, (known,), recalled=True)
        except LayerError:  # what the score depends on is not what it was when the layer was found
            pass
    return capture_after_search(model, request)


def capture_after_search(model: nn.Module, request: Request) -> Capture:
    """From a layer found now, whatever was found before."""
    finding.forget(model, request.key)
    return _gathered(model, request, (_found(model, request),))


def _gathered(model: nn.Module, request: Request, layers: Sequence[TargetLayer], *, recalled: bool = False) -> Capture:
    # A sum of floats depends on its order, so it is not the caller's.
    places = sorted(layers, key=lambda layer: layer.name)
    # A checkpointed part runs again in the backward, and has to run there as it ran in the forward.
    with torch.inference_mode(False), capture.preserved(model) as hidden_hooks, force_eager():
        throughout = model in _TURN_GRADIENTS_OFF
        returned, activations, handed = capture.forward(model, request.inputs, places, throughout=throughout)
        layouts = [_readable(request, *each) for each in zip(places, activations, strict=True)]
        logits, scores, target = request.score(returned)
        if not (throughout or scores.requires_grad or any(each.requires_grad for each in capture.members_of(logits))):
            returned, activations, handed = capture.forward(model, request.inputs, places, throughout=True)
            logits, scores, target = request.score(returned)
            throughout = True
        hooked = [hidden_hooks or bool(each._backward_hooks) or each.retains_grad for each in handed]
        del handed
        picked = None if hidden_hooks else request.picked(logits, target)
        chosen = request.chosen(logits)
        asked = chosen is None or len(chosen) > 0
        gradients = differentiate(scores, activations, places, hooked, picked) if asked else []
        if throughout:
            _TURN_GRADIENTS_OFF.add(model)
        with torch.no_grad():
            return Capture(
                outputs.detached(logits),
                scores.detach(),
                target,
                tuple(layer.name for layer in layers),
                [layout(maps.detach()) for layout, maps in zip(layouts, activations, strict=True)],
                [layout(maps) for layout, maps in zip(layouts, gradients, strict=asked)],
                recalled,
                chosen,
            )


def _written(function: Any) -> Any:
    """Where a function is written: many callers write theirs anew for every call. Of other callables, the type."""
    if isinstance(function, partial):
        return _written(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


def _held(function: Any) -> tuple[int | str, ...]:
    """The names and numbers that a function holds, such as those of a head among several."""
    if isinstance(function, partial):
        given = (*function.args, *function.keywords.values())
        return (*(each for each in given if isinstance(each, (int, str))), *_held(function.func))
    cells = [cell for cell in getattr(function, "__closure__", None) or () if cell != CellType()]
    held = (*(cell.cell_contents for cell in cells), *(getattr(function, "__defaults__", None) or ()))
    return tuple(each for each in held if isinstance(each, (int, str)))


def _readable(request: Request, layer: TargetLayer, maps: Tensor) -> spatial.FeatureLayout:
    try:
        return request.read(layer.module, maps)
    except spatial.UnreadableLayout as reason:
        raise NotSpatial(layer.name, maps.shape, request.geometry.batch, reason) from None


def _found(model: nn.Module, request: Request) -> TargetLayer:
    key = request.key
    # One image is enough, unless something may depend on the whole batch.
    alone = len(request.inputs.args) == 1 and not callable(request.target) and not model.training
    if alone and request.geometry.batch > 1:
        one = request.inputs.map(lambda images: images[:1])
        request = replace(request, inputs=one, geometry=replace(request.geometry, batch=1), target=None, topk=None)
    return finding.find(
        model,
        request.inputs,
        request.images,
        request.geometry.size,
        request.read,
        lambda returned: request.score(returned)[:2],
        key,
    )
