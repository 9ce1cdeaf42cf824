"""Finding the layer to explain: one trial run of the model, with gradients at every feature map.

Knows nothing of formulas or kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .capture import preserved, replace_tensor, tensor_in
from .compiled import eager_module, eagerly
from .layers import Layer, eager_modules

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs

__all__ = ["find", "forget", "is_spatial", "recall"]

_FOUND: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()

# Walking back from the output, gradients are asked for this many candidates at a time.
_AT_A_TIME = 8


def recall(model: nn.Module, key: Any) -> Layer | None:
    """The layer found before for this model and ``key``, if it is still there."""
    name = _FOUND.get(model, {}).get(key)
    if name is None:
        return None
    try:
        return Layer(name, eager_module(model.get_submodule(name)))
    except AttributeError:  # the model was rebuilt
        return None


def forget(model: nn.Module, key: Any) -> None:
    """Let the next :func:`find` for this model and ``key`` look again."""
    _FOUND.get(model, {}).pop(key, None)


def find(model: nn.Module, inputs: Inputs, batch: int, score: Callable[[Any], Tensor], key: Any) -> Layer:
    """The last spatial feature map that the score depends on, found by one forward and backward on ``inputs``.

    A map qualifies with the batch's size, more than one position, made by anything but pooling or dropout, at a
    module's last call, and with a gradient that is not identically zero. It is kept per model and ``key``. When every
    gradient vanishes (a head still at zero, an empty batch) the last one that has a gradient at all is taken, and not
    kept.

    Raises:
        ValueError: the model has no such map, or is a transformer.
        RuntimeError: the score is attached to nothing.
    """
    layer, sure = _find(model, inputs, batch, score)
    if sure:
        _FOUND.setdefault(model, {})[key] = layer.name
    return layer


@dataclass
class _Candidate:
    name: str
    module: nn.Module
    maps: Tensor


@dataclass
class _Trace:
    """Forward hooks on all modules that note each new map, in the order made, under its outermost module's name."""

    names: dict[nn.Module, str]
    batch: int
    thread: int = field(default_factory=threading.get_ident)
    candidates: list[_Candidate] = field(default_factory=list)
    token_maps: int = 0
    handed: dict[tuple[int, int], tuple[Tensor, _Candidate | None]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        maps = tensor_in(output)
        if threading.get_ident() != self.thread or maps is None:
            return None
        name = self.names[module]
        # Of a module that runs again only the last call can be captured.
        self.candidates = [each for each in self.candidates if each.module is not module]
        if (made := self.handed.get(_identity(maps))) is not None:
            candidate = made[1]
            if candidate and candidate.name.startswith(f"{name}."):
                candidate.name, candidate.module = name, module
            return None
        found = maps if maps.requires_grad else maps.detach().requires_grad_()
        self.token_maps += maps.dim() == 3
        candidate = None
        if is_spatial(module, found, self.batch) and not _pools(module, found):
            candidate = _Candidate(name, module, found)
            self.candidates.append(candidate)
        # What is handed onward may be changed in place; the candidate keeps the tensor as it was made.
        onward = found.clone()
        self.handed[_identity(onward)] = onward, candidate
        return replace_tensor(output, maps, onward)


def is_spatial(module: nn.Module, maps: Tensor, batch: int) -> bool:
    """Whether what ``module`` returned is (``batch``,C,h,w) with more than one position.

    A LayerNorm over the last axis says that channels come last.
    """
    channels_last = isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == tuple(maps.shape[-1:])
    return maps.dim() == 4 and len(maps) == batch and maps.shape[-2:].numel() > 1 and not channels_last


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


def _pools(module: nn.Module, maps: Tensor) -> bool:
    made_by = maps.grad_fn.name() if maps.grad_fn else type(module).__name__
    return "Pool" in made_by or "Drop" in made_by


def _find(model: nn.Module, inputs: Inputs, batch: int, score: Callable[[Any], Tensor]) -> tuple[Layer, bool]:
    trace = _Trace({module: name for name, module in reversed(eager_modules(model).items())}, batch)
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
        if trace.token_maps > len(trace.candidates):
            raise ValueError(
                f"{type(model).__name__} works on tokens (B,N,C), of which no layer is found automatically yet; "
                "name a layer that returns spatial feature maps (B,C,h,w) with layer=..."
            )
        scores = score(output)
        if not scores.requires_grad:
            raise RuntimeError(
                f"the score does not depend on any layer of {type(model).__name__}: it was detached, or the model turns "
                "gradients off; explain a score that is still attached to what the model returned"
            )
        chosen, sure = _last_with_gradient(trace.candidates, scores)
        if chosen is None:
            raise ValueError(
                f"{type(model).__name__} has no spatial feature map ({batch},C,h,w) with more than one position that "
                "the score depends on; name a layer with layer=..., or explain a larger image"
            )
    return Layer(chosen.name, chosen.module), sure


def _last_with_gradient(candidates: list[_Candidate], scores: Tensor) -> tuple[_Candidate | None, bool]:
    """The last candidate whose gradient is not zero, and True; else the last that has one at all, and False."""
    vanishing = None
    for end in range(len(candidates), 0, -_AT_A_TIME):
        some = candidates[max(0, end - _AT_A_TIME) : end]
        found = torch.autograd.grad(scores.sum(), [each.maps for each in some], retain_graph=True, allow_unused=True)
        for candidate, gradient in zip(reversed(some), reversed(found), strict=True):
            if gradient is not None and gradient.any():
                return candidate, True
            if gradient is not None:
                vanishing = vanishing or candidate
    return vanishing, False
