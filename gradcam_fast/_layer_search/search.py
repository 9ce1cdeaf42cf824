"""The layers to explain when the caller names none: remembered, or found by a trial run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .._capture.capture import Capture, capture
from .._capture.containers import all_tensors
from .._capture.scores import as_class_logits
from .._layout.token_grid import UnknownPatches
from .._model.eager import eager_module, eager_modules
from .._model.recent import Recent
from .._model.target_layer import TargetLayer
from .._model.warning import warn_caller
from ..exceptions import LayerError, NoLayerFound, ScoreDetached
from .graph_walk import output_parts, signature
from .rules import choose, cuts_patches
from .trace import Trace, trial_run

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.capture import Request
    from .._layout.token_grid import PatchTokens
    from .graph_walk import Signature
    from .trace import TracedMap

    # The name of a layer, and its TargetLayer.call.
    FoundLayer = tuple[str, Any]

__all__ = ["ask_for_patches", "capture_at_found_layers", "capture_at_remembered_layers", "known_patch_tokens"]

_T = TypeVar("_T")

# For each model and shape of an image: which tokens are patches, by their number.
_PATCH_TOKENS: WeakKeyDictionary[nn.Module, Recent[tuple[int, ...], dict[int, PatchTokens | str]]] = WeakKeyDictionary()

# For each model and key of a request: the layers found for each signature of its scores.
_FOUND: WeakKeyDictionary[nn.Module, Recent[Any, Recent[Signature, tuple[FoundLayer, ...]]]] = WeakKeyDictionary()


class _OtherSignature(LayerError):
    """The scores come from other parts of the model's output than the layers were found for."""

    def __init__(self, actual: Signature) -> None:
        self.actual = actual


def known_patch_tokens(model: nn.Module, images: Tensor) -> dict[int, PatchTokens | str]:
    """What trial runs on images of this shape have told about the model's tokens; they add to it."""
    return _PATCH_TOKENS.setdefault(model, Recent()).setdefault(tuple(images.shape[1:]), {})


def ask_for_patches(model: nn.Module, request: Request, count: int) -> None:
    """Let a trial run tell which of ``count`` tokens are patches."""
    _on_first_image_if_possible(model, request, _trace)
    known = request.geometry.patch_tokens
    assert known is not None
    known.setdefault(count, str(UnknownPatches(count)))


def capture_at_remembered_layers(model: nn.Module, request: Request) -> Capture | None:
    """The capture at the layers found for an earlier request of this kind; None if there are none that still serve."""
    of_model = _FOUND.get(model)
    found = None if of_model is None else of_model.get(_key(request))
    expected = None if found is None else found.last()
    if found is None or expected is None:
        return None
    try:
        return _capture_if(expected, model, request, found)
    except _OtherSignature as other:
        if other.actual not in found:
            return None
        expected = other.actual
    except LayerError:  # the scores no longer depend on these layers
        return None
    try:
        return _capture_if(expected, model, request, found)
    except LayerError:
        return None


def _capture_if(
    expected: Signature, model: nn.Module, request: Request, found: Recent[Signature, tuple[FoundLayer, ...]]
) -> Capture | None:
    """The capture at the layers found for this signature, if the scores have it."""

    def check(scores: Tensor, returned: Any) -> None:
        actual = signature(scores, all_tensors(returned))
        if actual != expected:
            raise _OtherSignature(actual)

    try:
        names = found.get(expected) or ()
        layers = [TargetLayer(name, eager_module(model.get_submodule(name)), call) for name, call in names]
    except AttributeError:  # the model was rebuilt
        return None
    if not layers:  # another thread has searched again
        return None
    captured = capture(model, request, layers, check_scores=check)
    return replace(captured, layer_remembered=True)


def capture_at_found_layers(model: nn.Module, request: Request) -> Capture:
    """The capture at the layers that a trial run finds now, whatever was found before.

    Raises:
        NoLayerFound: the model has no spatial feature map that the score depends on.
        ScoreDetached: the score has no graph.
    """
    layers, has_gradient = of_first_image = _find(model, request)
    found = _FOUND.setdefault(model, Recent()).setdefault(_key(request), Recent())

    def remember(scores: Tensor, returned: Any) -> None:
        actual = signature(scores, all_tensors(returned))
        found.forget(actual)
        # Where every gradient vanishes (a head of zeros, an empty batch) the next request may find better layers.
        # Scores that come from nothing the model returned cannot be told apart.
        if has_gradient and actual:
            found[actual] = tuple((layer.name, layer.call) for layer in layers)

    captured = capture(model, request, layers, check_scores=remember)
    if request.geometry.batch > 1 and callable(request.target) and not _all_scores_have_gradient(captured):
        # The best box of another image may be on another level of a pyramid, or the first image may have none.
        layers, has_gradient = _find_on(model, request)
        if (layers, has_gradient) != of_first_image:
            found.clear()
            captured = capture(model, request, layers, check_scores=remember)
    return captured


def _find(model: nn.Module, request: Request) -> tuple[tuple[TargetLayer, ...], bool]:
    """The layers found on the first image alone, or on the whole batch if something needs it."""
    return _on_first_image_if_possible(model, request, _find_on)


def _new_trace(model: nn.Module, request: Request) -> Trace:
    # Of a module with several names the first counts.
    return Trace({module: name for name, module in reversed(eager_modules(model).items())}, request)


def _trace(model: nn.Module, request: Request) -> None:
    with trial_run(model, request.inputs):
        _new_trace(model, request).run(model)


def _on_first_image_if_possible(model: nn.Module, request: Request, run: Callable[[nn.Module, Request], _T]) -> _T:
    """The result of a trial run on the first image alone, or on the whole batch if something needs it."""
    first = _on_first_image(model, request)
    if first is None:
        return run(model, request)
    try:
        return run(model, first)
    except NoLayerFound:
        raise
    except Exception:  # the model or a callable of the caller's needs the whole batch, or is wrong on that, too
        return run(model, request)


def _all_scores_have_gradient(captured: Capture) -> bool:
    axes = captured.scores.dim()
    found = [gradients.flatten(axes).any(axes) for gradients in captured.gradients]
    return not found or bool(torch.stack(found).any(0).all())


def _on_first_image(model: nn.Module, request: Request) -> Request | None:
    """The request about its first image; None if there is one image only, several inputs, or a training mode."""
    if request.geometry.batch < 2 or len(request.inputs.args) != 1 or model.training:
        return None
    target = request.target
    if isinstance(target, torch.Tensor):  # all classes of the batch: they decide together
        target = target.reshape(1, -1)
    first = request.inputs.map(lambda images: images[:1])
    return replace(request, inputs=first, geometry=replace(request.geometry, batch=1), target=target)


def _find_on(model: nn.Module, request: Request) -> tuple[tuple[TargetLayer, ...], bool]:
    with trial_run(model, request.inputs):
        trace = _new_trace(model, request)
        returned = trace.run(model)
        with torch.enable_grad():
            logits, scores, _ = request.scores(returned)
            if not scores.requires_grad:
                raise ScoreDetached(
                    f"the score does not depend on any layer of {type(model).__name__}: it was detached, or the model "
                    "turns gradients off; explain a score that is still attached to what the model returned"
                )
            scores = _of_any_class(request, returned, logits, scores)
            choice = choose(trace.maps, returned, logits, scores, request.geometry.size)
    if not choice.maps:
        raise _no_layer_found(model, trace)
    only = choice.maps[0]
    if trace.unreadable and len(choice.maps) == 1 and cuts_patches(only.module):
        warn_caller(
            f"the layer found, {only.name!r}, only cuts the images into patches, as no later one can be read: "
            f"{trace.unreadable}; or name a layer with layer=...",
            model=model,
        )
    layers = _layers_of_maps(choice.maps, trace.calls)
    if not choice.dominates:
        warn_caller(
            f"the heatmaps of {', '.join(repr(layer.name) for layer in layers)} show a part of what the score depends "
            "on: the rest goes through other layers, or through earlier calls of these; name layers with layer=...",
            model=model,
        )
    return layers, choice.has_gradient


def _layers_of_maps(maps: Sequence[TracedMap], calls: Mapping[nn.Module, int]) -> tuple[TargetLayer, ...]:
    """The layers that made the maps, each with those of its calls that did; None for its last or only call."""
    by_layer: dict[tuple[str, nn.Module], list[int]] = {}
    for traced in maps:
        by_layer.setdefault((traced.name, traced.module), []).append(traced.call)
    layers = []
    for (name, module), chosen in by_layer.items():
        if len(chosen) > 1:
            layers.append(TargetLayer(name, module, None if len(chosen) == calls[module] else tuple(chosen)))
        elif chosen[0] == calls[module] - 1 and (calls[module] == 1 or maps[0].pictures is None):
            layers.append(TargetLayer(name, module))
        else:
            layers.append(TargetLayer(name, module, tuple(chosen) if maps[0].pictures is not None else chosen[0]))
    return tuple(layers)


def _of_any_class(request: Request, returned: Any, logits: Any, scores: Tensor) -> Tensor:
    """A score of all classes instead of some, where all of them have the same layers: the class asked cannot matter.

    They have if one operation makes all logits. Where several do (a coarse and a fine head in one tensor), classes that
    were named decide, and of the highest logits all decide, because the class predicted must not.
    """
    if callable(request.target):
        return scores
    named = request.target is not None
    if named and len(output_parts(scores, all_tensors(returned))) > 1:
        return scores
    class_logits = as_class_logits(logits, request.geometry.batch)
    numbers = torch.arange(1, class_logits.shape[1] + 1, dtype=torch.float32, device=class_logits.device)
    weights = numbers.cos().to(class_logits.dtype)
    return class_logits @ weights


def _no_layer_found(model: nn.Module, trace: Trace) -> NoLayerFound:
    reason = trace.unreadable
    if trace.maps and not any(traced.of_images for traced in trace.maps):
        reason = f"{trace.maps[-1].name!r} runs on another input than the first one of images; call= explains that one"
    return NoLayerFound(
        f"{type(model).__name__} has no spatial feature map (B,C,h,w), nor tokens (B,N,C) of a grid, with more "
        f"than one position that the score depends on{reason and f' ({reason})'}; name a "
        "layer with layer=..., or explain a larger image"
    )


def _key(request: Request) -> Any:
    """Requests with one key and one signature of their scores are about the same layers."""
    kind = "callable" if callable(request.target) else "classes" if request.target is not None else "highest logits"
    tokens = _code_of(request.tokens) if callable(request.tokens) else request.tokens
    return tuple(request.images.shape[1:]), tokens, kind


def _code_of(function: Any) -> Any:
    """The code of a function: many callers make theirs anew for every call. The type, for another callable."""
    if isinstance(function, partial):
        return _code_of(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))
