"""The layers to explain when the caller names none: remembered, or found by a trial run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .._capture.capture import Capture, capture
from .._capture.containers import all_tensors
from .._capture.scores import as_class_logits
from .._layout.token_grid import NoPatches, UnknownPatches
from .._model.eager import eager_module, eager_modules
from .._model.recent import Recent
from .._model.target_layer import TargetLayer
from .._model.warning import warn_caller
from ..exceptions import LayerError, ScoreDetached
from .choice import choose
from .dominance import graph_starts
from .failures import check_what_follows_patches, named_reasons, no_layer_found
from .memory import FoundLayer, forget, memory_of
from .model_output import channel_axes_of, output_parts, signature
from .trace import Trace, trial_run

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.request import Request
    from .._layout.token_grid import PatchTokens
    from .model_output import Path
    from .traced_map import TracedMap

__all__ = ["ask_for_patches", "capture_at_found_layers", "capture_at_remembered_layers", "known_patch_tokens"]

_T = TypeVar("_T")

# For each model and shape of an image: which tokens are patches, by their number.
_PATCH_TOKENS: WeakKeyDictionary[nn.Module, Recent[tuple[int, ...], dict[int, PatchTokens | NoPatches]]] = (
    WeakKeyDictionary()
)


class _UnknownSignature(LayerError):
    """No layers are remembered for the parts of the model's output that the scores come from."""


def known_patch_tokens(model: nn.Module, images: Tensor) -> dict[int, PatchTokens | NoPatches]:
    """What trial runs on images of this shape have told about the model's tokens; they add to it."""
    return _PATCH_TOKENS.setdefault(model, Recent()).setdefault(tuple(images.shape[1:]), {})


def ask_for_patches(model: nn.Module, request: Request, count: int) -> None:
    """Let a trial run tell which of ``count`` tokens are patches."""
    _on_first_image_if_possible(model, request, _trace)
    known = request.geometry.patch_tokens
    assert known is not None
    known.setdefault(count, NoPatches(str(UnknownPatches(count))))


def capture_at_remembered_layers(model: nn.Module, request: Request) -> Capture | None:
    """The capture at the layers found for an earlier request of this kind; None if there are none that still serve."""
    memory = memory_of(model, request)
    if not memory.layers:
        return None
    try:
        # All of them: the scores will tell which are asked about.
        recorded = {found: _resolved(model, found) for found in (*chain(*memory.layers.values()), *memory.starts)}
    except AttributeError:  # the model was rebuilt
        return None

    def layers_of(logits: Any, scores: Tensor, returned: Any) -> Sequence[TargetLayer]:
        found = memory.layers.get(memory.signature(request, logits, scores, returned))
        if found is None:
            raise _UnknownSignature
        return [recorded[layer] for layer in found]

    try:
        captured = capture(model, request, list(recorded.values()), choose=layers_of)
    except LayerError:  # the scores no longer depend on these layers, or on others than ever before
        return None
    return replace(captured, layer_remembered=True)


def _resolved(model: nn.Module, found: FoundLayer) -> TargetLayer:
    return TargetLayer(found.name, eager_module(model.get_submodule(found.name)), found.call)


def capture_at_found_layers(model: nn.Module, request: Request) -> Capture:
    """The capture at the layers that a trial run finds now, whatever was found before.

    Raises:
        NoLayerFound: the model has no spatial feature map that the score depends on.
        ScoreDetached: the score has no graph.
    """
    found = of_first_image = _find(model, request)
    captured, alike = _capture_and_remember(model, request, found)
    if request.geometry.batch > 1 and callable(request.target) and not (alike and _all_scores_have_gradient(captured)):
        # The best box of another image may be on another level of a pyramid, or the first image may have none.
        found = _find_on(model, request)
        if found != of_first_image:
            forget(model, request)
            captured, _ = _capture_and_remember(model, request, found)
    return captured


def _capture_and_remember(model: nn.Module, request: Request, found: _Search) -> tuple[Capture, bool]:
    """The capture at the layers found, and whether the first image is asked about the same parts as all together."""
    memory = memory_of(model, request)
    memory.starts = found.starts or memory.starts
    memory.parts, memory.channel_axes, memory.has_parts = found.parts, found.channel_axes, found.has_parts
    alike = True

    def remember(logits: Any, scores: Tensor, returned: Any) -> Sequence[TargetLayer]:
        nonlocal alike
        asked = memory.signature(request, logits, scores, returned)
        alike = not callable(request.target) or asked == memory.signature(request, logits, scores[:1], returned)
        memory.layers.forget(asked)
        # Where every gradient vanishes (a head of zeros, an empty batch) the next request may find better layers.
        # Scores that come from nothing the model returned cannot be told apart.
        if found.has_gradient and asked:
            memory.layers[asked] = tuple(map(FoundLayer.of, found.layers))
        return found.layers

    starts = [_resolved(model, layer) for layer in found.starts]
    captured = capture(model, request, list(dict.fromkeys((*found.layers, *starts))), choose=remember)
    return captured, alike


class _Search(NamedTuple):
    """What a trial run has found: the layers, whether their gradients are not zero, and what ``Memory`` holds."""

    layers: tuple[TargetLayer, ...]
    has_gradient: bool
    starts: tuple[FoundLayer, ...]
    parts: tuple[Path, ...]
    channel_axes: Mapping[int, int]
    has_parts: bool


def _find(model: nn.Module, request: Request) -> _Search:
    """The layers found on the first image alone, or on the whole batch if something needs it."""
    return _on_first_image_if_possible(model, request, _find_on)


def _run(model: nn.Module, request: Request) -> tuple[Trace, Any]:
    """A trial run, and what the model returned."""
    # Of a module with several names the first counts.
    names = {module: name for name, module in reversed(eager_modules(model).items())}
    try:
        trace = Trace(names, request)
        return trace, trace.run(model)
    except RuntimeError as error:  # of a model that differentiates with torch.func
        if "saved tensor hooks" not in str(error):
            raise
    trace = Trace(names, request, saves_once=False)
    return trace, trace.run(model)


def _trace(model: nn.Module, request: Request) -> None:
    with trial_run(model, request.inputs):
        _run(model, request)


def _on_first_image_if_possible(model: nn.Module, request: Request, run: Callable[[nn.Module, Request], _T]) -> _T:
    """The result of a trial run on the first image alone, or on the whole batch if something needs it."""
    first = _on_first_image(model, request)
    if first is None:
        return run(model, request)
    try:
        return run(model, first)
    except Exception:  # the model or a callable of the caller's needs the whole batch, or is wrong on that, too
        return run(model, request)


def _all_scores_have_gradient(captured: Capture) -> bool:
    axes = captured.scores.dim()
    found = [gradients.flatten(axes).any(axes) for gradients in captured.gradients]
    return not found or bool(torch.stack(found).any(0).all())


def _on_first_image(model: nn.Module, request: Request) -> Request | None:
    """The request about its first sample; None if there is one only, or a training mode."""
    batch = request.geometry.batch
    if batch < 2 or model.training:
        return None
    target = request.target
    if isinstance(target, torch.Tensor):  # all classes of the batch: they decide together
        target = target.reshape(1, -1)
    first = request.inputs.map(lambda tensor: tensor[:1] if tensor.dim() and len(tensor) == batch else tensor)
    return replace(request, inputs=first, geometry=replace(request.geometry, batch=1), target=target, variants=1)


def _find_on(model: nn.Module, request: Request) -> _Search:
    with trial_run(model, request.inputs), named_reasons(model):
        trace, returned = _run(model, request)
        with torch.enable_grad():
            logits, scores, _ = request.scores(returned)
            if not scores.requires_grad:
                way_out = "" if request.needs.gradients else ", or name a layer with layer=..."
                raise ScoreDetached(
                    f"the score does not depend on any layer of {type(model).__name__}: it was detached, or the model "
                    "turns gradients off; explain a score that is still attached to what the model "
                    f"returned{way_out}"
                )
            tensors = all_tensors(returned)
            channel_axes = channel_axes_of(tensors, trace.maps, rank=len(request.geometry.size))
            parts = output_parts(tensors, trace.behind)
            asked = signature(scores, tensors, parts, channel_axes, behind=trace.behind, by_values=False)
            read, scores = _of_any_class(request, asked, logits, scores)
            choice = choose(trace, tensors, channel_axes, read, scores)
            if not choice.maps and trace.follow_cuts():
                choice = choose(trace, tensors, channel_axes, read, scores)
            if not choice.maps:
                raise no_layer_found(model, trace, scores)
    check_what_follows_patches(model, trace, choice.maps, scores)
    layers = _layers_of_maps(choice.maps, trace.calls)
    if not choice.dominates:
        warn_caller(
            f"the heatmaps of {', '.join(repr(layer.name) for layer in layers)} show a part of what the score depends "
            "on: the rest goes through other layers, or through earlier calls of these; name layers with layer=...",
            model=model,
        )
    starts = _layers_of_maps(graph_starts(trace.of_images, parts.values(), choice.maps), trace.calls)
    return _Search(
        layers,
        choice.has_gradient,
        tuple(map(FoundLayer.of, starts)),
        tuple(parts),
        channel_axes,
        len(set(parts.values())) > 1,
    )


def _layers_of_maps(maps: Sequence[TracedMap], calls: Mapping[nn.Module, int]) -> tuple[TargetLayer, ...]:
    """The layers that made the maps, once for each call that did; where the last one did alone, no call is named.

    Of samples of several pictures, once with all of these calls.
    """
    by_layer: dict[TargetLayer, list[int]] = {}
    for traced in maps:
        by_layer.setdefault(TargetLayer(traced.name, traced.module), []).append(traced.call)
    layers: list[TargetLayer] = []
    for layer, chosen in by_layer.items():
        if maps[0].pictures is not None:
            layers.append(layer if len(chosen) == calls[layer.module] else replace(layer, call=tuple(chosen)))
        elif chosen == [calls[layer.module] - 1]:
            layers.append(layer)
        else:
            layers.extend(replace(layer, call=call) for call in chosen)
    return tuple(layers)


def _of_any_class(request: Request, parts: Collection[Any], logits: Any, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and a score of all classes instead of some, if the class asked cannot matter; or the scores twice.

    It cannot if one operation makes all logits. Where several do (a coarse and a fine head in one tensor), classes that
    were named decide, and of the highest logits all decide, because the class predicted must not.
    """
    if callable(request.target) or (request.target is not None and len(parts) > 1):
        return scores, scores
    class_logits = as_class_logits(logits, request.geometry.batch)
    numbers = torch.arange(1, class_logits.shape[1] + 1, dtype=torch.float32, device=class_logits.device)
    weights = numbers.cos().to(class_logits.dtype)
    return class_logits, class_logits @ weights
