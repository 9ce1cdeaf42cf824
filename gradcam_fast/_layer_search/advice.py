"""What to do where every gradient at the layers that a caller named is zero: which layer has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from .._capture.capture import capture
from ..exceptions import ExplanationError
from .search import capture_at_found_layers
from .trace import trial_run

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.capture import Capture
    from .._capture.request import Request
    from .._model.target_layer import TargetLayer

__all__ = ["advice_without_gradient"]


def advice_without_gradient(model: nn.Module, request: Request, layers: Sequence[TargetLayer]) -> str:
    """The end of a warning about named layers: why their gradient is zero, and which layer to name; "" if unknown.

    Captures once more with all tokens as positions, and searches for a layer as if none had been named.
    """
    better = _layers_with_gradient(model, request)
    only_other_tokens = _gradient_at_other_tokens(model, request, layers)
    advice = []
    if only_other_tokens:
        advice.append("behind it the score reads only tokens that are no patches, such as the class token")
    if better and set(better) != {layer.name for layer in layers}:
        advice.append(f"name layer={better[0] if len(better) == 1 else list(better)!r}, which has a gradient")
    elif only_other_tokens:
        advice.append("name an earlier layer")
    return "; ".join(advice)


def _gradient_at_other_tokens(model: nn.Module, request: Request, layers: Sequence[TargetLayer]) -> bool:
    """Whether the score has a gradient at the layers' tokens, which at those that are patches it has not."""
    rank = len(request.geometry.size)
    request = replace(request, tokens=_all_tokens(request.geometry.batch, rank), when=None)
    try:
        with trial_run(model, request.inputs):
            return _has_gradient(capture(model, request, layers))
    except ExplanationError:  # what the layer returns are no tokens
        return False


def _all_tokens(batch: int, rank: int) -> Callable[[Tensor], Tensor]:
    """From tokens (B,N,C) or (N,B,C) to maps (B,C,N,1) with all tokens in a row."""

    def as_maps(tokens: Tensor) -> Tensor:
        if tokens.dim() != 3:
            raise ValueError("no tokens")
        by_image = tokens if len(tokens) == batch else tokens.transpose(0, 1)
        return by_image.transpose(1, 2).unflatten(2, (-1, *[1] * (rank - 1)))

    return as_maps


def _layers_with_gradient(model: nn.Module, request: Request) -> tuple[str, ...]:
    try:
        captured = capture_at_found_layers(model, replace(request, when=None))
    except ExplanationError:
        return ()
    return captured.layers if _has_gradient(captured) else ()


def _has_gradient(captured: Capture) -> bool:
    return any(bool(maps.any()) for maps in captured.gradients)
