"""The rules of the choice: which outputs are feature maps, and which of these is the layer to explain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .._capture.containers import tensors_in
from .._capture.scores import pick_logits
from .._layout.token_grid import fits
from .._model.inputs import convolutions, per_side

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .._layout.token_grid import Grid
    from .trace import Candidate

__all__ = ["choose", "cuts_patches", "is_feature_map", "passes_on"]

# Gradients are asked for this many candidates at a time, from the output backwards.
_CANDIDATES_PER_BACKWARD = 8


class Rule(NamedTuple):
    """A kind of output that is no feature map to explain."""

    name: str
    why: str
    excludes: Callable[[nn.Module, Tensor, FeatureLayout], bool]


def passes_on(module: nn.Module) -> bool:
    """Whether the module returns its input, but for what a training step drops: Identity, Dropout, DropPath ..."""
    return isinstance(module, nn.Identity) or _leaf_named("Drop", module)


def _leaf_named(kind: str, module: nn.Module) -> bool:
    """Whether the class has this word in its name and the module has no submodules."""
    return kind in type(module).__name__ and next(module.children(), None) is None


def _made_by(word: str, maps: Tensor) -> bool:
    return maps.grad_fn is not None and word in maps.grad_fn.name()


RULES = (
    Rule("passes on", "it is what another module made", lambda module, maps, layout: passes_on(module)),
    Rule(
        "pooling",
        "a pooled map is the map before it at a lower resolution",
        lambda module, maps, layout: _leaf_named("Pool", module) or _made_by("Pool", maps),
    ),
    Rule(
        "softmax",
        "attention weights look like maps with as many channels as heads",
        lambda module, maps, layout: _made_by("Softmax", maps),
    ),
    Rule(
        "projection of tokens",
        "queries, keys and values are no features that anyone names; the norm before them is what they are made of",
        lambda module, maps, layout: isinstance(module, nn.Linear) and layout.kind != "planes",
    ),
)


def is_feature_map(module: nn.Module, maps: Tensor, layout: FeatureLayout) -> bool:
    """Whether what a module returned is a feature map: no rule excludes it."""
    return not any(rule.excludes(module, maps, layout) for rule in RULES)


def cuts_patches(module: nn.Module) -> bool:
    """Whether the module's only convolution cuts images into patches: its stride is its kernel."""
    layers = convolutions(module)
    if len(layers) != 1:
        return False
    stride = per_side(layers[0], layers[0].stride)
    return math.prod(stride) > 1 and stride == per_side(layers[0], layers[0].kernel_size)


def choose(candidates: list[Candidate], logits: Any, scores: Tensor, size: Grid) -> tuple[Candidate | None, bool]:
    """The layer to explain, and whether its gradient is not zero; None if the scores depend on no candidate.

    Args:
        candidates: in execution order.
        logits: of the model, with their graph.
        scores: (B,) or (B,K), with their graph.
        size: (H,W) of the images.
    """
    tokens = [candidate for candidate in candidates if candidate.layout.kind == "tokens"]
    if tokens:
        # Among tokens, four axes may be (B, heads, tokens, features).
        candidates = [candidate for candidate in candidates if candidate.layout.fits]
    dense = _dense_shapes(logits, scores, size)
    # A depth map (B,H,W), say, has no features.
    candidates = [candidate for candidate in candidates if candidate not in tokens or candidate.maps.shape not in dense]
    return _last_with_gradient(candidates, scores, dense=bool(dense))


def _dense_shapes(output: Any, scores: Tensor, size: Grid) -> list[tuple[int, ...]]:
    """The shapes of the dense outputs that the scores come from; none if the scores come from logits (B,N)."""
    try:
        tensors = [pick_logits(output, None)]
    except TypeError:  # several: the scores tell which
        tensors = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        gradients = torch.autograd.grad(scores.sum(), tensors, retain_graph=True, allow_unused=True) if tensors else ()
        tensors = [tensor for tensor, gradient in zip(tensors, gradients, strict=True) if gradient is not None]
    if any(tensor.dim() == 2 for tensor in tensors):
        return []
    return [tuple(tensor.shape) for tensor in tensors if _is_dense(tensor, size)]


def _is_dense(logits: Tensor, size: Grid) -> bool:
    """Whether logits have several positions on images of this size: (B,N,h,w) or (B,h,w)."""
    if logits.dim() == len(size) + 1 == 3:
        return fits(tuple(logits.shape[1:]), size)
    return logits.dim() > 3 and logits.shape[2:].numel() > 1


def _last_with_gradient(candidates: list[Candidate], scores: Tensor, *, dense: bool) -> tuple[Candidate | None, bool]:
    """The last candidate whose gradient is not zero, and True; else the last that the scores depend on, and False.

    Before a dense output (segmentation) the gradient must have more than one direction among the channels: where it has
    one at all positions (at the class maps, and before a last 1x1 convolution), pooling it forgets the position.
    """
    total = scores.sum()
    if candidate := _last_reached(candidates, total, 1.0, _direction_varies if dense else torch.any):
        return candidate, True
    # Zero times NaN is NaN: where zero weights stop every gradient, only what is not connected stays zero. A batch
    # without images, and a score that is zero for want of a detection, are connected all the same.
    for seed, reaches in ((torch.nan, torch.any), (1.0, lambda gradient: True)):
        if candidate := _last_reached(candidates, total, seed, reaches):
            return candidate, False
    return None, False


def _last_reached(
    candidates: list[Candidate], total: Tensor, seed: float, reaches: Callable[[Tensor], Any]
) -> Candidate | None:
    """The last candidate for whose gradient (B,C,h,w) ``reaches`` is true, with ``seed`` as the score's gradient."""
    seeds = torch.full_like(total, seed)
    for end in range(len(candidates), 0, -_CANDIDATES_PER_BACKWARD):
        group = candidates[max(0, end - _CANDIDATES_PER_BACKWARD) : end]
        with torch.autograd.set_detect_anomaly(False):
            gradients = torch.autograd.grad(
                total, [candidate.maps for candidate in group], seeds, retain_graph=True, allow_unused=True
            )
        for candidate, gradient in zip(reversed(group), reversed(gradients), strict=True):
            if gradient is not None and reaches(candidate.layout(gradient)):
                return candidate
    return None


def _direction_varies(gradient: Tensor) -> bool:
    """Whether some image's gradient (B,C,h,w) has more than one direction among the channels."""
    vectors = gradient.float().flatten(2)
    lengths = vectors.norm(dim=1)
    longest = vectors.gather(2, lengths.argmax(1)[:, None, None].expand(-1, vectors.shape[1], 1))
    longest = longest / longest.norm(dim=1, keepdim=True).clamp(min=1e-30)
    across = vectors - longest * (vectors * longest).sum(1, keepdim=True)
    return bool((across.norm(dim=1) > 1e-3 * lengths.amax(1, keepdim=True)).any())
