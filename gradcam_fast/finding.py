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

from .capture import members_of, preserved, replace_tensor, tensor_in
from .compiled import eager_module, eagerly
from .layers import Layer, eager_modules
from .spatial import Unreadable

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs
    from .spatial import Reading

__all__ = ["find", "forget", "recall"]

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


def find(
    model: nn.Module,
    inputs: Inputs,
    read: Callable[[nn.Module, Tensor], Reading],
    score: Callable[[Any], Tensor],
    key: Any,
) -> Layer:
    """The last spatial feature map that the score depends on, found by one forward and backward on ``inputs``.

    A map qualifies if ``read`` can read it, if it was made by anything but pooling, dropout, attention weights or a
    lone projection of tokens, at a module's last call, and if its gradient at the positions (not at class tokens) is
    not identically zero. It is kept per model and ``key``. When every gradient vanishes (a head still at zero, an empty
    batch) the last one that the score depends on by its structure is taken, and not kept.

    Raises:
        ValueError: the model has no such map.
        RuntimeError: the score is attached to nothing.
    """
    layer, sure = _find(model, inputs, read, score)
    if sure:
        _FOUND.setdefault(model, {})[key] = layer.name
    return layer


@dataclass
class _Candidate:
    name: str
    module: nn.Module
    maps: Tensor
    reading: Reading


@dataclass
class _Trace:
    """Forward hooks on all modules that note each new map, in the order made, under its outermost module's name."""

    names: dict[nn.Module, str]
    read: Callable[[nn.Module, Tensor], Reading]
    thread: int = field(default_factory=threading.get_ident)
    candidates: list[_Candidate] = field(default_factory=list)
    unreadable: str = ""
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
            # What a module returns beside the maps (a pooled vector, say) it may have made of them.
            alone = len(members_of(output)) == 1
            if candidate and alone and candidate.name.startswith(f"{name}."):
                candidate.name, candidate.module = name, module
            return None
        found = maps if maps.requires_grad else maps.detach().requires_grad_()
        candidate = None
        try:
            reading = self.read(module, found)
            if not _passes_on(module, found, reading):
                candidate = _Candidate(name, module, found, reading)
                self.candidates.append(candidate)
        except Unreadable as reason:
            if maps.dim() == 3:
                self.unreadable = f"layer {name!r} returns shape {tuple(maps.shape)}, {reason}"
        # What is handed onward may be changed in place; the candidate keeps the tensor as it was made.
        onward = found.clone()
        self.handed[_identity(onward)] = onward, candidate
        return replace_tensor(output, maps, onward)


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


def _passes_on(module: nn.Module, maps: Tensor, reading: Reading) -> bool:
    # Softmax makes attention weights, which look like maps of as many channels as there are heads. A lone projection
    # of tokens (to queries, keys, values) has features that no one names; the norm before it is what they are made of.
    made_by = maps.grad_fn.name() if maps.grad_fn else ""
    passing = isinstance(module, nn.Identity) or any(word in type(module).__name__ for word in ("Drop", "Pool"))
    projects = isinstance(module, nn.Linear) and reading.layout != "planes"
    return passing or projects or any(word in made_by for word in ("Pool", "Softmax"))


def _find(
    model: nn.Module,
    inputs: Inputs,
    read: Callable[[nn.Module, Tensor], Reading],
    score: Callable[[Any], Tensor],
) -> tuple[Layer, bool]:
    trace = _Trace({module: name for name, module in reversed(eager_modules(model).items())}, read)
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
        scores = score(output)
        if not scores.requires_grad:
            raise RuntimeError(
                f"the score does not depend on any layer of {type(model).__name__}: it was detached, or the model "
                "turns gradients off; explain a score that is still attached to what the model returned"
            )
        candidates = trace.candidates
        if any(each.reading.layout == "tokens" for each in candidates):
            # Among tokens, four axes may be (B, heads, tokens, features).
            candidates = [each for each in candidates if each.reading.fits]
        dense = any(each.dim() > 3 and each[0, 0].numel() > 1 for each in members_of(output))
        chosen, sure = _last_with_gradient(candidates, scores, dense)
        if chosen is None:
            raise ValueError(
                f"{type(model).__name__} has no spatial feature map (B,C,h,w), nor tokens (B,N,C) of a grid, with more "
                f"than one position that the score depends on{trace.unreadable and f' ({trace.unreadable})'}; name a "
                "layer with layer=..., or explain a larger image"
            )
    return Layer(chosen.name, chosen.module), sure


def _last_with_gradient(candidates: list[_Candidate], scores: Tensor, dense: bool) -> tuple[_Candidate | None, bool]:
    """The last candidate whose gradient is not zero, and True; else the last that the scores depend on, and False.

    Of a dense output (segmentation), scores are taken somewhere. Where the gradient has one direction at all positions
    (at the class maps, and before a last convolution of 1x1), pooling it forgets where, so these do not count.
    """
    total = scores.sum()
    if found := _last_reached(candidates, total, 1.0, _varies if dense else torch.any):
        return found, True
    # Zero times NaN is NaN: where zero weights stop every gradient, only what is not connected stays zero. In an empty
    # batch there is nothing to be seen at all.
    found = _last_reached(candidates, total, torch.nan, lambda arrived: not len(arrived) or bool(arrived.any()))
    return found, False


def _last_reached(
    candidates: list[_Candidate], total: Tensor, seed: float, counts: Callable[[Tensor], Any]
) -> _Candidate | None:
    """The last candidate at whose positions something that ``counts`` arrives when ``seed`` goes back."""
    seeds = torch.full_like(total, seed)
    for end in range(len(candidates), 0, -_AT_A_TIME):
        some = candidates[max(0, end - _AT_A_TIME) : end]
        with torch.autograd.set_detect_anomaly(False):
            found = torch.autograd.grad(
                total, [each.maps for each in some], seeds, retain_graph=True, allow_unused=True
            )
        for candidate, gradient in zip(reversed(some), reversed(found), strict=True):
            if gradient is not None and counts(candidate.reading(gradient)):
                return candidate
    return None


def _varies(gradient: Tensor) -> bool:
    """Whether some image's gradient (B,C,h,w) has more than one direction among the channels."""
    vectors = gradient.float().flatten(2)
    lengths = vectors.norm(dim=1)
    longest = vectors.gather(2, lengths.argmax(1)[:, None, None].expand(-1, vectors.shape[1], 1))
    longest = longest / longest.norm(dim=1, keepdim=True).clamp(min=1e-30)
    across = vectors - longest * (vectors * longest).sum(1, keepdim=True)
    return bool((across.norm(dim=1) > 1e-3 * lengths.amax(1, keepdim=True)).any())
