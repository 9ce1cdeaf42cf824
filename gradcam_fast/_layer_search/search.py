"""The layers to explain when the caller names none: remembered, or found by a trial run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import nn

from .._capture.capture import Capture, capture
from .._capture.containers import all_tensors
from .._capture.module_runs import ModuleRuns
from .._layout.token_grid import NoPatches, UnknownPatches
from .._model.eager import eager_module, eager_modules
from .._model.target_layer import TargetLayer
from .._model.warning import warn_caller
from ..exceptions import LayerError, NoLayerFound, ScoreDetached
from .alignment import aligned_calls, refuse_turned_tokens
from .choice import choose, of_any_class
from .dominance import graph_starts
from .failures import check_what_follows_patches, named_reasons, no_layer_found
from .memory import FoundLayer, idle_modules, memory_of
from .model_output import channel_axes_of, output_parts, signature
from .trace import Trace, trial_run
from .traced_map import layers_of_maps

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.request import Request
    from .model_output import Path

__all__ = ["ask_for_patches", "capture_at_found_layers", "capture_at_remembered_layers"]

_T = TypeVar("_T")


class _UnknownSignature(LayerError):
    """No layers are remembered for the parts of the model's output that the scores come from."""


def ask_for_patches(model: nn.Module, request: Request, count: int) -> None:
    """Let a trial run tell which of ``count`` tokens are patches."""
    _on_first_image_if_possible(model, request, _trace)
    known = request.geometry.patch_tokens
    assert known is not None
    known.setdefault(count, NoPatches(str(UnknownPatches(count))))


def capture_at_remembered_layers(model: nn.Module, request: Request) -> Capture | None:
    """The capture at the layers found for an earlier request of this kind; None if there are none that still serve."""
    memory = memory_of(model, request)
    # All of them: what runs, and the scores, will tell which are asked about.
    known = [found for depth in memory.depths for found in (*chain(*depth.layers.values()), *depth.starts)]
    try:
        recorded = {found: _resolved(model, found) for found in known}
        runs = ModuleRuns({_module(model, name): name for name in memory.watched}, request.geometry)
    except AttributeError:  # the model was rebuilt
        return None
    if not recorded:
        return None

    def layers_of(logits: Any, scores: Tensor, returned: Any) -> Sequence[TargetLayer]:
        depth = memory.at(runs)
        found = depth.layers.get(depth.signature(request, logits, scores, returned)) if depth else None
        if found is None:
            raise _UnknownSignature
        return [recorded[layer] for layer in found]

    try:
        captured = capture(model, request, list(recorded.values()), choose=layers_of, runs=runs)
    except LayerError:  # the scores no longer depend on these layers, or on others than ever before
        return None
    return replace(captured, layer_remembered=True)


def _resolved(model: nn.Module, found: FoundLayer) -> TargetLayer:
    return TargetLayer(found.name, _module(model, found.name), found.call)


def _module(model: nn.Module, name: str) -> nn.Module:
    module: nn.Module = eager_module(model.get_submodule(name))
    return module


def capture_at_found_layers(model: nn.Module, request: Request) -> Capture:
    """The capture at the layers that a trial run finds now, whatever was found before.

    Raises:
        NoLayerFound: the model has no spatial feature map that the score depends on.
        ScoreDetached: the score has no graph.
    """
    found = _find(model, request)
    captured: Capture | None = None
    failure: LayerError | None = None
    same_runs = serves = False
    part: frozenset[str] = frozenset()
    try:
        captured, same_runs, same_parts = _capture_and_remember(model, request, found)
        serves = same_runs and same_parts and (not callable(request.target) or captured.all_scores_have_gradient)
    except LayerError as error:
        if request.geometry.batch == 1:
            raise
        failure, part = error, frozenset(layer.name for layer in found.layers)
    if captured is None or (request.geometry.batch > 1 and not serves):
        # The best box of another image may be on another level of a pyramid, or the first image may have none. Or the
        # model ends early for some of the images.
        try:
            of_all = _find_on(model, request)
        except NoLayerFound as error:
            raise failure or error from None
        if captured is None or of_all != found:
            if same_runs:
                memory_of(model, request).forget(found.ran)
            captured, _, _ = _capture_and_remember(model, request, of_all._replace(watched=of_all.watched | part))
    return captured


def _capture_and_remember(model: nn.Module, request: Request, found: _Search) -> tuple[Capture, bool, bool]:
    """The capture at the layers found; whether the search's modules run, and the first image asks about all parts."""
    memory = memory_of(model, request)
    depth = memory.enter(found.ran, found.watched)
    depth.starts = found.starts or depth.starts
    depth.parts, depth.channel_axes, depth.has_parts = found.parts, found.channel_axes, found.has_parts
    runs = ModuleRuns({_module(model, name): name for name in memory.watched}, request.geometry)
    same_runs = same_parts = True

    def remember(logits: Any, scores: Tensor, returned: Any) -> Sequence[TargetLayer]:
        nonlocal same_runs, same_parts
        same_runs = memory.at(runs) is depth
        if not same_runs:
            return found.layers
        asked = depth.signature(request, logits, scores, returned)
        same_parts = not callable(request.target) or asked == depth.signature(request, logits, scores[:1], returned)
        depth.layers.forget(asked)
        # Where every gradient vanishes (a head of zeros, an empty batch) the next request may find better layers.
        # Scores that come from nothing the model returned cannot be told apart.
        if found.has_gradient and asked:
            depth.layers[asked] = tuple(map(FoundLayer.of, found.layers))
        return found.layers

    starts = [_resolved(model, layer) for layer in found.starts]
    captured = capture(model, request, list(dict.fromkeys((*found.layers, *starts))), choose=remember, runs=runs)
    return captured, same_runs, same_parts


class _Search(NamedTuple):
    """What a trial run has found: the layers, whether their gradients are not zero, and what ``Memory`` holds."""

    layers: tuple[TargetLayer, ...]
    has_gradient: bool
    starts: tuple[FoundLayer, ...]
    parts: tuple[Path, ...]
    channel_axes: Mapping[int, int]
    has_parts: bool
    ran: frozenset[str]
    watched: frozenset[str]


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
        trace, _ = _run(model, request)
        refuse_turned_tokens(trace)


def _on_first_image_if_possible(model: nn.Module, request: Request, run: Callable[[nn.Module, Request], _T]) -> _T:
    """The result of a trial run on the first image alone, or on the whole batch if something needs it."""
    first = _on_first_image(model, request)
    if first is None:
        return run(model, request)
    try:
        return run(model, first)
    except Exception:  # the model or a callable of the caller's needs the whole batch, or is wrong on that, too
        return run(model, request)


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
            read, scores = of_any_class(request, asked, logits, scores)
            choice = choose(trace, tensors, channel_axes, read, scores)
            if not choice.maps and trace.follow_cuts():
                choice = choose(trace, tensors, channel_axes, read, scores)
            if not choice.maps:
                raise no_layer_found(model, trace, scores)
            maps = aligned_calls(trace, choice.maps, dominate=choice.dominates)
    check_what_follows_patches(model, trace, maps, scores)
    layers = layers_of_maps(maps, trace.calls)
    if not choice.dominates:
        warn_caller(
            f"the heatmaps of {', '.join(repr(layer.name) for layer in layers)} show a part of what the score depends "
            "on: the rest goes through other layers, or through earlier calls of these; name layers with layer=...",
            model=model,
        )
    starts = layers_of_maps(graph_starts(trace.of_images, parts.values(), maps), trace.calls)
    behind = frozenset(traced.name for traced in choice.behind)
    return _Search(
        layers,
        choice.has_gradient,
        tuple(map(FoundLayer.of, starts)),
        tuple(parts),
        channel_axes,
        len(set(parts.values())) > 1,
        frozenset(trace.ran),
        behind.union(idle_modules(trace.names, trace.calls)),
    )
