"""The capture that a request asks for: at layers that were named or are found, and of the images they are about.

Most requests take one forward. Where a layer may have run on other images, too, the model is asked before or after.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from .._capture.capture import Capture, capture
from .._capture.hooks import ran_several_times
from .._layout.token_grid import UnknownPatches
from .._model.warning import LOG
from ..exceptions import NotSpatial
from .search import ask_for_patches, capture_at_found_layers, capture_at_remembered_layers

if TYPE_CHECKING:
    from .._capture.request import Request
    from .._model.target_layer import TargetLayer
    from ..types import Call

__all__ = ["capture_anew", "capture_asked", "of_one_input"]


def capture_asked(
    model: nn.Module, request: Request, layers: Sequence[TargetLayer] | None, call: Call
) -> tuple[Request, Capture]:
    """The capture, and the request about the images explained: ``call=`` may name others than the first.

    Args:
        layers: that were named; None to have them found.
        call: which of their calls counts.
    """
    if layers is None:
        captured = capture_at_remembered_layers(model, request) or _capture_at_found_layers(model, request)
        if call is None:
            return request, of_one_input(model, request, captured)
        layers = list(dict.fromkeys(replace(of_layer.layer, call=call) for of_layer in captured.calls))
    if request.takes_several_images:
        request, layers = _at_calls_on_images(model, request, layers)
        return request, of_one_input(model, request, _capture_at(model, request, layers))
    not_spatial = None
    try:
        captured = _capture_at(model, request, layers)
    except NotSpatial as error:
        not_spatial = error
    if request.geometry.pictures is None and any(
        layer.call is None and ran_several_times(layer.module) for layer in layers
    ):
        request, resolved = _at_calls_on_images(model, request, layers)
        if list(resolved) != list(layers):  # the last call was on something else than the images
            return request, _capture_at(model, request, resolved)
    if not_spatial is not None:
        raise not_spatial
    return request, captured


def capture_anew(model: nn.Module, request: Request) -> Capture:
    """The capture at layers that are found now, whatever is remembered."""
    return of_one_input(model, request, capture_at_found_layers(model, request))


def _capture_at_found_layers(model: nn.Module, request: Request) -> Capture:
    start = time.perf_counter()
    captured = capture_at_found_layers(model, request)
    duration = 1000 * (time.perf_counter() - start)
    LOG.debug("searched for the layer, found %s, and explained it in %.1f ms", captured.layers, duration)
    return captured


def _capture_at(model: nn.Module, request: Request, layers: Sequence[TargetLayer]) -> Capture:
    while True:
        try:
            return capture(model, request, layers)
        except UnknownPatches as unknown:  # each number of tokens is asked for once
            ask_for_patches(model, request, unknown.count)


def _at_calls_on_images(
    model: nn.Module, request: Request, layers: Sequence[TargetLayer]
) -> tuple[Request, Sequence[TargetLayer]]:
    # Imported here, because few models need it.
    from .pictures import resolve_calls

    return resolve_calls(model, request, layers)


def of_one_input(model: nn.Module, request: Request, captured: Capture) -> Capture:
    """The capture of the images explained alone, where a layer ran on several inputs of images at once."""
    if not any(calls.of_inputs for calls in captured.calls):
        return captured
    from .pictures import select_input

    return select_input(model, request, captured)
