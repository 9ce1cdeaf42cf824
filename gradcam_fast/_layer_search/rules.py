"""The rules of the choice: which outputs are feature maps, and which of these is the layer to explain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .._capture.containers import all_tensors, tensors_in
from .._capture.scores import pick_logits
from .._layout.token_grid import fits
from .._model.inputs import convolutions, per_side
from ..ops.heatmaps import POOLED_NOISE
from .dominance import dominators
from .graph_walk import output_leaves

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .._layout.token_grid import Grid
    from .trace import TracedMap

__all__ = ["Choice", "choose", "cuts_patches", "is_feature_map", "passes_on"]


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


class Choice(NamedTuple):
    """The layers to explain.

    Attributes:
        maps: of the layers.
        has_gradient: whether their gradients are not zero (else only the graph speaks for them).
        dominates: whether all of the scores' dependence on the images' positions goes through them.
    """

    maps: list[TracedMap]
    has_gradient: bool
    dominates: bool = True


def choose(maps: list[TracedMap], returned: Any, logits: Any, scores: Tensor, size: Grid) -> Choice:
    """The last map that dominates the scores, or the maps that do so together; no maps if there are none.

    Args:
        maps: of a trial run, in execution order.
        returned: what the model returned, with its graph.
        logits: what ``output`` picked of that.
        scores: (B,) or (B,K), with their graph.
        size: (H,W) of the images.
    """
    maps = [traced for traced in maps if traced.of_images]
    excluded = _excluded(maps, returned, logits, scores, size)
    dense = bool(_dense_shapes(logits, scores, size))

    def qualifies(traced: TracedMap, gradient: Tensor) -> bool:
        if traced in excluded or not _counts(traced) or _is_noise(gradient):
            return False
        return not dense or _direction_varies(gradient)

    found, dominates = dominators(maps, scores, seed=1.0, reaches=torch.any, qualifies=qualifies)
    if found:
        return Choice(found, True, dominates)
    # Zero times NaN is NaN: where zero weights stop every gradient, only what is not connected stays zero. A batch
    # without images, and a score that is zero for want of a detection, are connected all the same.
    for seed, reaches in ((torch.nan, torch.any), (1.0, lambda gradient: True)):
        found, _ = dominators(
            maps,
            scores,
            seed=seed,
            reaches=reaches,
            qualifies=lambda traced, gradient: _counts(traced) and traced not in excluded,
        )
        if found:
            return Choice(found, False)
    return Choice([], False)


def _excluded(maps: list[TracedMap], returned: Any, logits: Any, scores: Tensor, size: Grid) -> list[TracedMap]:
    """Maps that are the model's own output, or are no maps among tokens."""
    behind = {id(traced.leaf): traced.behind.node for traced in maps if traced.behind is not None}
    own = {id(leaf) for leaf in output_leaves(scores, all_tensors(returned), behind)}
    tokens = [traced for traced in maps if traced.layout.kind == "tokens"]
    dense = _dense_shapes(logits, scores, size)
    return [
        traced
        for traced in maps
        # Among tokens, four axes may be (B, heads, tokens, features). A depth map (B,H,W) has no features.
        if id(traced.leaf) in own or (tokens and not traced.layout.fits) or (traced in tokens and traced.shape in dense)
    ]


def _counts(traced: TracedMap) -> bool:
    """Whether the capture keeps the map: of the last call on the images, or of any call on one of several pictures."""
    return traced.last_call or traced.pictures is not None


def _is_noise(gradient: Tensor) -> bool:
    """Whether the gradient (B,C,h,w) pools to less than float32 tells from zero, as behind a softmax over positions."""
    values = gradient.double().flatten(2)
    return bool(values.mean(2).abs().amax() <= POOLED_NOISE * values.abs().mean(2).amax())


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


def _direction_varies(gradient: Tensor) -> bool:
    """Whether some image's gradient (B,C,h,w) has more than one direction among the channels."""
    vectors = gradient.float().flatten(2)
    lengths = vectors.norm(dim=1)
    longest = vectors.gather(2, lengths.argmax(1)[:, None, None].expand(-1, vectors.shape[1], 1))
    longest = longest / longest.norm(dim=1, keepdim=True).clamp(min=1e-30)
    across = vectors - longest * (vectors * longest).sum(1, keepdim=True)
    return bool((across.norm(dim=1) > 1e-3 * lengths.amax(1, keepdim=True)).any())
