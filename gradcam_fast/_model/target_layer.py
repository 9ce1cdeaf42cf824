"""The layers a caller names, by dotted name or as modules of the model."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from .eager import eager_module, eager_modules

if TYPE_CHECKING:
    from ..types import Call, Layer

__all__ = ["TargetLayer", "check_call", "resolve_layers"]


@dataclass(frozen=True)
class TargetLayer:
    """A module inside the model, and its dotted name there.

    Attributes:
        call: which of its calls in one forward counts, from 0, or -1 for the last; several, or all. None: the last, or
            of samples of several pictures all that these need.
    """

    name: str
    module: nn.Module
    call: int | tuple[int, ...] | Literal["all"] | None = None


def check_call(call: Any) -> Call:
    """Refuse a value of ``call=`` that names no call."""
    if call is None or call == "all" or (isinstance(call, int) and not isinstance(call, bool)):
        return call
    raise TypeError(
        f"call={call!r} names no call of the layer; give 0 for the first, -1 for the last, 'all', or None for the last "
        "that sees the images"
    )


def resolve_layers(model: nn.Module, layer: Layer, call: Call = None) -> tuple[TargetLayer, ...] | None:
    """The layers that ``layer=`` names; None if it is None, and the layer has to be found automatically.

    Raises:
        ValueError: the model has no such layer; the message has the nearest names.
        TypeError: ``layer`` is neither a name, nor a module, nor a list of these.
    """
    if layer is None:
        return None
    choices = layer if isinstance(layer, (list, tuple)) else (layer,)
    if not choices:
        raise ValueError("layer=[] names no layer; give at least one, or layer=None to have one found")
    return tuple(replace(_check_runs(_resolve(model, choice)), call=call) for choice in choices)


def _check_runs(layer: TargetLayer) -> TargetLayer:
    # Some subclasses, such as DenseNet's blocks, do run.
    if type(layer.module).forward is nn.Module.forward:
        last = next(reversed(list(layer.module.named_children())), None)
        use = f"use {layer.name + '.' + last[0]!r}" if last else "name a layer that runs"
        raise ValueError(f"layer {layer.name!r} is a {type(layer.module).__name__}, a container that never runs; {use}")
    return layer


def _resolve(model: nn.Module, choice: Any) -> TargetLayer:
    modules = eager_modules(model)
    if isinstance(choice, str):
        if choice in modules:
            return TargetLayer(choice, modules[choice])
        nearest = difflib.get_close_matches(choice, modules, n=3, cutoff=0.4) or list(modules)[-3:]
        raise ValueError(
            f"layer {choice!r} is not in {type(model).__name__}; nearest names: {', '.join(map(repr, nearest))} "
            "(all of them: dict(model.named_modules()), or the command gradcam-fast layers)"
        )
    if not isinstance(choice, nn.Module):
        raise TypeError(
            f"layer={choice!r} is a {type(choice).__name__}; give a dotted name such as 'layer4', a module of the "
            "model, or a list of these"
        )
    choice = eager_module(choice)
    for name, module in modules.items():
        if module is choice:
            return TargetLayer(name, module)
    problem = "is the model itself" if choice is model else "is not a module of this model"
    raise ValueError(f"layer {type(choice).__name__} {problem}; give a module inside {type(model).__name__}")
