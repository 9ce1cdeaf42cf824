"""Finding the layer to explain: trial runs of the model, with gradients at its last feature maps, then at all.

Knows nothing of formulas or kernels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .._capture.hooks import members_of
from .._capture.scores import pick_logits
from .._layout.feature_layout import fits
from .._model.eager import eager_module
from .._model.inputs import convolutions, sides_of
from .._model.target_layer import TargetLayer, eager_modules
from .trace import Candidate, Trace, undisturbed

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout, Grid
    from .._model.inputs import Inputs

__all__ = ["find", "forget", "recall"]

_FOUND: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()

# A graph behind all of a network's outputs takes as much memory as training it, behind this many of them little.
_LAST = 32

# Walking back from the output, gradients are asked for this many candidates at a time.
_AT_A_TIME = 8


def recall(model: nn.Module, key: Any) -> TargetLayer | None:
    """The layer found before for this model and ``key``, if it is still there."""
    name = _FOUND.get(model, {}).get(key)
    if name is None:
        return None
    try:
        return TargetLayer(name, eager_module(model.get_submodule(name)))
    except AttributeError:  # the model was rebuilt
        return None


def forget(model: nn.Module, key: Any) -> None:
    """Let the next :func:`find` for this model and ``key`` look again."""
    _FOUND.get(model, {}).pop(key, None)


def find(
    model: nn.Module,
    inputs: Inputs,
    images: Tensor,
    size: Grid,
    read: Callable[[nn.Module, Tensor], FeatureLayout],
    score: Callable[[Any], tuple[Any, Tensor]],
    key: Any,
) -> TargetLayer:
    """The last spatial feature map that the score depends on, found by running the model on ``inputs``.

    A map qualifies if ``read`` can read it, if it was made by anything but pooling, dropout, attention weights or a
    lone projection of tokens, at a module's last call, and if its gradient at the positions (not at class tokens) is
    not identically zero. Where there are several inputs, it has to change with ``images``, of sides ``size``. It is
    kept per model and ``key``. When every gradient vanishes (a head still at zero, an empty batch) the last one that
    the score depends on by its structure is taken, and not kept.

    Raises:
        ValueError: the model has no such map.
        RuntimeError: the score is attached to nothing.
    """
    layer, sure = _find(model, inputs, images, size, read, score)
    if sure:
        _FOUND.setdefault(model, {})[key] = layer.name
    return layer


def _find(
    model: nn.Module,
    inputs: Inputs,
    images: Tensor,
    size: Grid,
    read: Callable[[nn.Module, Tensor], FeatureLayout],
    score: Callable[[Any], tuple[Any, Tensor]],
) -> tuple[TargetLayer, bool]:
    names = {module: name for name, module in reversed(eager_modules(model).items())}
    with undisturbed(model, inputs):
        for skipped in _skips(model, inputs, names, read):
            trace = Trace(names, read, skipped)
            output = trace.run(model, inputs)
            logits, scores = score(output)
            if len(inputs.tensors) > 1 and images.numel():
                _leave_those_of(images, trace, model, inputs)
            chosen, sure = _choose(trace.candidates, logits, scores, size) if scores.requires_grad else (None, False)
            if sure:
                break
    if not scores.requires_grad:
        raise RuntimeError(
            f"the score does not depend on any layer of {type(model).__name__}: it was detached, or the model "
            "turns gradients off; explain a score that is still attached to what the model returned"
        )
    if chosen is None:
        raise ValueError(
            f"{type(model).__name__} has no spatial feature map (B,C,h,w), nor tokens (B,N,C) of a grid, with more "
            f"than one position that the score depends on{trace.unreadable and f' ({trace.unreadable})'}; name a "
            "layer with layer=..., or explain a larger image"
        )
    if trace.unreadable and _cuts_patches(chosen.module):
        warnings.warn(
            f"the layer found, {chosen.name!r}, is where the images are cut into patches: no other can be read"
            f" ({trace.unreadable}), or name a layer with layer=...",
            stacklevel=8,
        )
    return TargetLayer(chosen.name, chosen.module), sure


def _cuts_patches(module: nn.Module) -> bool:
    """Whether all its convolutions do is to cut images into patches."""
    inside = convolutions(module)
    if len(inside) != 1:
        return False
    stride = sides_of(inside[0], inside[0].stride)
    return math.prod(stride) > 1 and stride == sides_of(inside[0], inside[0].kernel_size)


def _leave_those_of(images: Tensor, trace: Trace, model: nn.Module, inputs: Inputs) -> None:
    """Leave the candidates that change when the images do: not what was made of a text or of another picture."""
    changed = Trace(trace.names, trace.read, trace.skipped)
    changed.run(model, inputs.map(lambda value: torch.randn_like(value) if value is images else value))
    after = {each.module: each.maps for each in changed.candidates}
    found = [each for each in trace.candidates if each.module in after]
    trace.candidates = [each for each in found if not torch.equal(each.maps, after[each.module])]
    if found and not trace.candidates:
        trace.unreadable = f"{found[-1].name!r} was last run on another input than the first one of images"


def _skips(
    model: nn.Module, inputs: Inputs, names: dict[nn.Module, str], read: Callable[[nn.Module, Tensor], FeatureLayout]
) -> list[int]:
    """How many outputs to skip: all but the last, among which the layer nearly always is; if it is not, none."""
    if len(names) <= _LAST:
        return [0]
    everything = Trace(names, read, math.inf)
    everything.run(model, inputs)
    return [everything.outputs - _LAST, 0] if everything.outputs > _LAST else [0]


def _choose(candidates: list[Candidate], logits: Any, scores: Tensor, size: Grid) -> tuple[Candidate | None, bool]:
    tokens = [each for each in candidates if each.layout.layout == "tokens"]
    if tokens:
        # Among tokens, four axes may be (B, heads, tokens, features).
        candidates = [each for each in candidates if each.layout.fits]
    dense = _dense(logits, scores, size)
    # A depth map (B,H,W), say, has no features.
    candidates = [each for each in candidates if each not in tokens or each.maps.shape not in dense]
    return _last_with_gradient(candidates, scores, bool(dense))


def _dense(output: Any, scores: Tensor, size: Grid) -> list[tuple[int, ...]]:
    """The shapes of dense logits in what is explained; if the scores come from logits (B,N), others are features."""
    try:
        members = [pick_logits(output, None)]
    except TypeError:  # a callable target knows which
        members = [each for each in members_of(output) if each.requires_grad]
        reached = torch.autograd.grad(scores.sum(), members, retain_graph=True, allow_unused=True) if members else ()
        members = [each for each, gradient in zip(members, reached, strict=True) if gradient is not None]
    if any(each.dim() == 2 for each in members):
        return []
    return [tuple(each.shape) for each in members if _is_dense(each, size)]


def _is_dense(logits: Tensor, size: Grid) -> bool:
    """Whether there are logits (B,N,h,w), or (B,h,w), at several positions of images of this size."""
    if logits.dim() == len(size) + 1 == 3:
        return fits(tuple(logits.shape[1:]), size)
    return logits.dim() > 3 and logits.shape[2:].numel() > 1


def _last_with_gradient(candidates: list[Candidate], scores: Tensor, dense: bool) -> tuple[Candidate | None, bool]:
    """The last candidate whose gradient is not zero, and True; else the last that the scores depend on, and False.

    Of a dense output (segmentation), scores are taken somewhere. Where the gradient has one direction at all positions
    (at the class maps, and before a last convolution of 1x1), pooling it forgets where, so these do not count.
    """
    total = scores.sum()
    if found := _last_reached(candidates, total, 1.0, _varies if dense else torch.any):
        return found, True
    # Zero times NaN is NaN: where zero weights stop every gradient, only what is not connected stays zero. In an empty
    # batch there is nothing to be seen at all, and where a score is zero for want of what it is of (a detection).
    for seed, counts in ((torch.nan, torch.any), (1.0, lambda arrived: True)):
        if found := _last_reached(candidates, total, seed, counts):
            return found, False
    return None, False


def _last_reached(
    candidates: list[Candidate], total: Tensor, seed: float, counts: Callable[[Tensor], Any]
) -> Candidate | None:
    """The last candidate at whose positions something that ``counts`` arrives when ``seed`` goes back."""
    seeds = torch.full_like(total, seed)
    for end in range(len(candidates), 0, -_AT_A_TIME):
        some = candidates[max(0, end - _AT_A_TIME) : end]
        with torch.autograd.set_detect_anomaly(False):
            found = torch.autograd.grad(
                total, [each.maps for each in some], seeds, retain_graph=True, allow_unused=True
            )
        for candidate, gradient in zip(reversed(some), reversed(found), strict=True):
            if gradient is not None and counts(candidate.layout(gradient)):
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
