"""Which layer to explain: by dotted name, as a module, or found automatically from one trial run.

Knows nothing of formulas or kernels.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .capture import preserved, replace_tensor, tensor_in
from .compiled import eager_module, eager_name, eagerly

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs

    LayerChoice = str | nn.Module | Sequence["str | nn.Module"] | None

__all__ = ["Layer", "find", "named"]

_FOUND: WeakKeyDictionary[nn.Module, dict[Any, Layer]] = WeakKeyDictionary()

# Walking back from the output, gradients are asked for this many candidates at a time.
_AT_A_TIME = 8


@dataclass(frozen=True)
class Layer:
    """A module inside the model, and the dotted name under which it is found there."""

    name: str
    module: nn.Module


def named(model: nn.Module, choice: LayerChoice) -> tuple[Layer, ...] | None:
    """The layers a caller named; None when the choice is left to :func:`find`.

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


def _named(model: nn.Module, choice: Any) -> Layer:
    modules = _modules(model)
    if isinstance(choice, str):
        if choice in modules:
            return Layer(choice, modules[choice])
        near = difflib.get_close_matches(choice, modules, n=3, cutoff=0.4) or list(modules)[-3:]
        raise ValueError(
            f"layer {choice!r} is not in {type(model).__name__}; nearest names: {', '.join(map(repr, near))} "
            "(all of them: dict(model.named_modules()))"
        )
    if not isinstance(choice, nn.Module):
        raise TypeError(
            f"layer={choice!r} is a {type(choice).__name__}; give a dotted name such as 'layer4', a module of the "
            "model, or a list of these"
        )
    choice = eager_module(choice)
    for name, module in modules.items():
        if module is choice:
            return Layer(name, module)
    what = "is the model itself" if choice is model else "is not a module of this model"
    raise ValueError(f"layer {type(choice).__name__} {what}; give a module inside {type(model).__name__}")


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module inside the model under each of its names, as if nothing were compiled."""
    named_modules = model.named_modules(remove_duplicate=False)
    return {eager_name(name): eager_module(module) for name, module in named_modules if eager_name(name)}


def find(model: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor], key: Any) -> Layer:
    """The last spatial feature map that the score depends on, found by one forward and backward on ``inputs``.

    A map qualifies with more than one position, made by anything but pooling or dropout, with a gradient that is not
    identically zero. When every gradient vanishes (a head still at zero) the last spatial map is taken. The choice is
    kept per model and ``key``.

    Raises:
        ValueError: the model has no spatial feature map at all.
    """
    known = _FOUND.setdefault(model, {})
    layer = known.get(key)
    if layer is None or not _still_there(model, layer):
        layer = known[key] = _find(model, inputs, score)
    return layer


def _still_there(model: nn.Module, layer: Layer) -> bool:
    try:
        return eager_module(model.get_submodule(layer.name)) is layer.module
    except AttributeError:
        return False


@dataclass
class _Candidate:
    name: str
    module: nn.Module
    maps: Tensor


@dataclass
class _Trace:
    """Forward hooks on all modules that note each new tensor, in the order made, under its outermost module's name."""

    names: dict[nn.Module, str]
    thread: int = field(default_factory=threading.get_ident)
    candidates: list[_Candidate] = field(default_factory=list)
    handed: dict[tuple[int, int], tuple[Tensor, _Candidate | None]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        maps = tensor_in(output)
        if threading.get_ident() != self.thread or maps is None:
            return None
        name = self.names[module]
        if (made := self.handed.get(_identity(maps))) is not None:
            candidate = made[1]
            if candidate and candidate.name.startswith(f"{name}."):
                candidate.name, candidate.module = name, module
            return None
        if not maps.requires_grad:
            maps = maps.detach().requires_grad_()
        candidate = _Candidate(name, module, maps) if _is_spatial(maps) and not _pools(module, maps) else None
        if candidate:
            self.candidates.append(candidate)
        # What is handed onward may be changed in place; the candidate keeps the tensor as it was made.
        onward = maps.clone()
        self.handed[_identity(onward)] = onward, candidate
        return replace_tensor(output, tensor_in(output), onward)  # type: ignore[arg-type]


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


def _is_spatial(maps: Tensor) -> bool:
    return maps.dim() == 4 and maps.shape[-2] * maps.shape[-1] > 1


def _pools(module: nn.Module, maps: Tensor) -> bool:
    made_by = maps.grad_fn.name() if maps.grad_fn else ""
    return any(word in name for word in ("Pool", "Drop") for name in (type(module).__name__, made_by))


def _find(model: nn.Module, inputs: Inputs, score: Callable[[Any], Tensor]) -> Layer:
    trace = _Trace({module: name for name, module in reversed(_modules(model).items())})
    devices = {value.device for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, torch.Tensor)}
    handles = []
    with (
        preserved(model),
        eagerly(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng([device for device in devices if device.type == "cuda"]),
    ):
        try:
            for module in trace.names:
                handles.append(module.register_forward_hook(trace))
            output = inputs.map(torch.clone)(model)
        finally:
            for handle in handles:
                handle.remove()
        if not trace.candidates:
            raise ValueError(
                f"{type(model).__name__} has no spatial feature map (B,C,h,w) with more than one position to explain; "
                "name a layer with layer=..., or explain a larger image"
            )
        chosen = _last_with_gradient(trace.candidates, score(output)) or trace.candidates[-1]
    return Layer(chosen.name, chosen.module)


def _last_with_gradient(candidates: list[_Candidate], scores: Tensor) -> _Candidate | None:
    if not scores.requires_grad:
        return None
    for end in range(len(candidates), 0, -_AT_A_TIME):
        some = candidates[max(0, end - _AT_A_TIME) : end]
        found = torch.autograd.grad(scores.sum(), [each.maps for each in some], retain_graph=True, allow_unused=True)
        for candidate, gradient in zip(reversed(some), reversed(found), strict=True):
            if gradient is not None and gradient.any():
                return candidate
    return None
