"""The layer to explain when the caller names none: remembered from a request like this one, or found by trial runs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import CellType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .._capture.capture import Capture, capture
from .._model.eager import eager_module, eager_modules
from .._model.target_layer import TargetLayer
from .._model.warning import warn_caller
from ..exceptions import LayerError, NoLayerFound, ScoreDetached
from .rules import choose, cuts_patches
from .trace import Trace, trial_run

if TYPE_CHECKING:
    from .._capture.capture import Request

__all__ = ["capture_at_found_layer", "capture_at_remembered_layer"]

# The layer found for each model and key of a request.
_FOUND: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()

# A graph behind all of a network's outputs takes as much memory as training it; behind the last 32 it takes little.
_LAST_OUTPUTS = 32


def capture_at_remembered_layer(model: nn.Module, request: Request) -> Capture | None:
    """The capture at the layer found for an earlier request of the same key; None if that layer no longer serves."""
    name = _FOUND.get(model, {}).get(_key(request))
    if name is None:
        return None
    try:
        layer = TargetLayer(name, eager_module(model.get_submodule(name)))
    except AttributeError:  # the model was rebuilt
        return None
    try:
        return replace(capture(model, request, (layer,)), layer_remembered=True)
    except LayerError:  # the score depends on something else than it did when the layer was found
        return None


def capture_at_found_layer(model: nn.Module, request: Request) -> Capture:
    """The capture at the layer that trial runs find now, whatever was found before.

    Raises:
        NoLayerFound: the model has no spatial feature map that the score depends on.
        ScoreDetached: the score has no graph.
    """
    key = _key(request)
    _FOUND.get(model, {}).pop(key, None)
    layer, has_gradient = _find(model, _on_one_image(model, request))
    # Where every gradient vanishes (a head of zeros, an empty batch) the next request may find a better layer.
    if has_gradient:
        _FOUND.setdefault(model, {})[key] = layer.name
    return capture(model, request, (layer,))


def _on_one_image(model: nn.Module, request: Request) -> Request:
    """The request about its first image alone, unless something may depend on the whole batch."""
    alone = len(request.inputs.args) == 1 and not callable(request.target) and not model.training
    if not alone or request.geometry.batch <= 1:
        return request
    first = request.inputs.map(lambda images: images[:1])
    return replace(request, inputs=first, geometry=replace(request.geometry, batch=1), target=None, topk=None)


def _find(model: nn.Module, request: Request) -> tuple[TargetLayer, bool]:
    """The last feature map that the scores depend on, and whether its gradient is not zero.

    First only the last outputs are traced; if the layer is not among them, all of them are.
    """
    names = {module: name for name, module in reversed(eager_modules(model).items())}
    with trial_run(model, request.inputs):
        for skipped in _outputs_to_skip(model, request, names):
            trace = Trace(names, request.layout, skipped)
            returned = trace.run(model, request.inputs)
            logits, scores, _ = request.scores(returned)
            if len(request.inputs.tensors) > 1 and request.images.numel():
                _drop_candidates_of_other_inputs(trace, model, request)
            candidate, has_gradient = None, False
            if scores.requires_grad:
                candidate, has_gradient = choose(trace.candidates, logits, scores, request.geometry.size)
            if has_gradient:
                break
    if not scores.requires_grad:
        raise ScoreDetached(
            f"the score does not depend on any layer of {type(model).__name__}: it was detached, or the model "
            "turns gradients off; explain a score that is still attached to what the model returned"
        )
    if candidate is None:
        raise NoLayerFound(
            f"{type(model).__name__} has no spatial feature map (B,C,h,w), nor tokens (B,N,C) of a grid, with more "
            f"than one position that the score depends on{trace.unreadable and f' ({trace.unreadable})'}; name a "
            "layer with layer=..., or explain a larger image"
        )
    if trace.unreadable and cuts_patches(candidate.module):
        warn_caller(
            f"the layer found, {candidate.name!r}, only cuts the images into patches, as no later one can be read: "
            f"{trace.unreadable}; or name a layer with layer=..."
        )
    return TargetLayer(candidate.name, candidate.module), has_gradient


def _outputs_to_skip(model: nn.Module, request: Request, names: dict[nn.Module, str]) -> list[int]:
    """How many outputs each trace skips: all but the last, among which the layer nearly always is; then none."""
    if len(names) <= _LAST_OUTPUTS:
        return [0]
    count = Trace(names, request.layout, math.inf)
    count.run(model, request.inputs)
    return [count.outputs - _LAST_OUTPUTS, 0] if count.outputs > _LAST_OUTPUTS else [0]


def _drop_candidates_of_other_inputs(trace: Trace, model: nn.Module, request: Request) -> None:
    """Keep the candidates that change with the images: not what was made of a text or of another picture."""
    images = request.images
    other_images = request.inputs.map(lambda value: torch.randn_like(value) if value is images else value)
    other = Trace(trace.names, trace.infer_layout, trace.skipped)
    other.run(model, other_images)
    other_maps = {candidate.module: candidate.maps for candidate in other.candidates}
    candidates = [candidate for candidate in trace.candidates if candidate.module in other_maps]
    trace.candidates = [
        candidate for candidate in candidates if not torch.equal(candidate.maps, other_maps[candidate.module])
    ]
    if candidates and not trace.candidates:
        trace.unreadable = f"{candidates[-1].name!r} was last run on another input than the first one of images"


def _key(request: Request) -> Any:
    """Requests with one key are about the same layer, as far as can be known without running the model."""
    tokens = _code_of(request.tokens) if callable(request.tokens) else request.tokens
    target = _code_of(request.target) if callable(request.target) else None
    return tuple(request.images.shape[1:]), tokens, target, _code_of(request.output), _constants_of(request.output)


def _code_of(function: Any) -> Any:
    """The code of a function: many callers make theirs anew for every call. The type, for another callable."""
    if isinstance(function, partial):
        return _code_of(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


def _constants_of(function: Any) -> tuple[int | str, ...]:
    """The strings and integers that a function holds in its closure and defaults, such as the name of a head."""
    if isinstance(function, partial):
        bound = (*function.args, *function.keywords.values())
        return (*(value for value in bound if isinstance(value, (int, str))), *_constants_of(function.func))
    cells = [cell for cell in getattr(function, "__closure__", None) or () if cell != CellType()]
    values = (*(cell.cell_contents for cell in cells), *(getattr(function, "__defaults__", None) or ()))
    return tuple(value for value in values if isinstance(value, (int, str)))
