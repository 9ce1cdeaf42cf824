"""A layer as the caller names it: by dotted name or as a module of the model.

Knows nothing of what layers compute; finding one without a name is ``finding``'s affair.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .eager import eager_module, eager_name

if TYPE_CHECKING:
    LayerChoice = str | nn.Module | Sequence["str | nn.Module"] | None

__all__ = ["TargetLayer", "eager_modules", "resolve_layers"]


@dataclass(frozen=True)
class TargetLayer:
    """A module inside the model, and the dotted name under which it is found there."""

    name: str
    module: nn.Module


def resolve_layers(model: nn.Module, choice: LayerChoice) -> tuple[TargetLayer, ...] | None:
    """The layers a caller named; None when the choice is left to :mod:`gradcam_fast._layer_search.search`.

    Raises:
        ValueError: no such layer in this model; the message has the nearest names.
        TypeError: neither a name, a module nor a list of these.
    """
    if choice is None:
        return None
    choices = choice if isinstance(choice, (list, tuple)) else (choice,)
    if not choices:
        raise ValueError("layer=[] names no layer; give at least one, or layer=None to have one found")
    return tuple(_named(model, each) for each in choices)


def _named(model: nn.Module, choice: Any) -> TargetLayer:
    modules = eager_modules(model)
    if isinstance(choice, str):
        if choice in modules:
            return TargetLayer(choice, modules[choice])
        near = difflib.get_close_matches(choice, modules, n=3, cutoff=0.4) or list(modules)[-3:]
        raise ValueError(
            f"layer {choice!r} is not in {type(model).__name__}; nearest names: {', '.join(map(repr, near))} "
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
    what = "is the model itself" if choice is model else "is not a module of this model"
    raise ValueError(f"layer {type(choice).__name__} {what}; give a module inside {type(model).__name__}")


def eager_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module inside the model that takes hooks, under each of its names, as if nothing were compiled.

    But for what makes a parametrized weight: that is no map of anything.
    """
    return {
        eager_name(name): eager_module(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if eager_name(name)
        and not isinstance(module, torch.jit.ScriptModule)
        and "parametrizations" not in name.split(".")
    }
