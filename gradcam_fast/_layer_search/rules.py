"""The rules of the choice: which outputs are feature maps, and which of these is the layer to explain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .._model.inputs import convolutions, per_side
from ..ops.heatmaps import POOLED_NOISE
from .alignment import is_aligned
from .dominance import dominators
from .model_output import output_leaves

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .trace import Trace
    from .traced_map import TracedMap

__all__ = ["RULES", "Choice", "choose", "cuts_patches", "is_feature_map", "passes_on"]


class Returned(NamedTuple):
    """What a module returned in a trial run."""

    module: nn.Module
    maps: Tensor
    layout: FeatureLayout


class Candidate(NamedTuple):
    """A feature map that the scores depend on.

    Attributes:
        traced: the map.
        gradient: of the scores at it, (B,C,h,w).
        own_output: whether no operation from it to the scores mixes channels.
        among_tokens: whether other maps of the model are tokens.
    """

    traced: TracedMap
    gradient: Tensor
    own_output: bool
    among_tokens: bool


class Rule(NamedTuple):
    """A kind of output that is no layer to explain.

    Attributes:
        name: of the rule.
        why: the reason.
        about: what it looks at: what modules return is no feature map at all; a candidate is passed by in the choice.
        excludes: whether something is of this kind.
    """

    name: str
    why: str
    about: type[Returned] | type[Candidate]
    excludes: Callable[[Any], bool]


def passes_on(module: nn.Module) -> bool:
    """Whether the module returns its input, but for what a training step drops: Identity, Dropout, DropPath ..."""
    return isinstance(module, nn.Identity) or _leaf_named("Drop", module)


def _leaf_named(kind: str, module: nn.Module) -> bool:
    """Whether the class has this word in its name and the module has no submodules."""
    return kind in type(module).__name__ and next(module.children(), None) is None


def _made_by(word: str, maps: Tensor) -> bool:
    return maps.grad_fn is not None and word in maps.grad_fn.name()


def _is_noise(gradient: Tensor) -> bool:
    """Whether the gradient (B,C,h,w) pools to less than float32 tells from zero."""
    values = gradient.double().flatten(2)
    return bool(values.mean(2).abs().amax() <= POOLED_NOISE * values.abs().mean(2).amax())


RULES = (
    Rule("passes on", "it is what another module made", Returned, lambda output: passes_on(output.module)),
    Rule(
        "pooling",
        "a pooled map is the map before it at a lower resolution",
        Returned,
        lambda output: _leaf_named("Pool", output.module) or _made_by("Pool", output.maps),
    ),
    Rule(
        "softmax",
        "attention weights look like maps with as many channels as heads",
        Returned,
        lambda output: _made_by("Softmax", output.maps),
    ),
    Rule(
        "projection of tokens",
        "queries, keys and values are no features that anyone names; the norm before them is what they are made of",
        Returned,
        lambda output: isinstance(output.module, nn.Linear) and output.layout.kind != "planes",
    ),
    Rule(
        "own output",
        "a prediction is no explanation of itself: behind a feature map, channels are mixed",
        Candidate,
        lambda candidate: candidate.own_output,
    ),
    Rule(
        "axes of attention",
        "among tokens, four axes may be (B, heads, tokens, features)",
        Candidate,
        lambda candidate: candidate.among_tokens and not candidate.traced.layout.fits,
    ),
    Rule(
        "earlier call",
        "the name of a layer stands for its last call on the images; of several pictures every call has one",
        Candidate,
        lambda candidate: not candidate.traced.last_call and candidate.traced.pictures is None,
    ),
    Rule(
        "rounding noise",
        "behind a softmax over positions the pooled gradient is zero, and rounding leaves a map of nothing",
        Candidate,
        lambda candidate: _is_noise(candidate.gradient),
    ),
)


def is_feature_map(module: nn.Module, maps: Tensor, layout: FeatureLayout) -> bool:
    """Whether what a module returned is a feature map: no rule excludes it."""
    output = Returned(module, maps, layout)
    return not any(rule.about is Returned and rule.excludes(output) for rule in RULES)


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


def choose(
    trace: Trace, returned: list[Tensor], channel_axes: Mapping[int, int], read: Tensor, scores: Tensor
) -> Choice:
    """The last map that dominates the scores, or the maps that do so together; no maps if there are none.

    Args:
        trace: of a trial run.
        returned: the tensors in what the model returned, with their graph.
        channel_axes: of those that are maps, by their place.
        read: what the scores read of that: themselves, or the logits of all classes.
        scores: (B,) or (B,K), with their graph.
    """
    maps = trace.of_images
    own = {id(leaf) for leaf in output_leaves(read, returned, channel_axes, trace.behind)}
    among_tokens = any(traced.layout.kind == "tokens" for traced in maps)

    def search(seed: float, reaches: Callable[[Tensor], object], *without: str) -> tuple[list[TracedMap], bool]:
        rules = [rule for rule in RULES if rule.about is Candidate and rule.name not in without]

        def qualifies(traced: TracedMap, gradient: Tensor) -> bool:
            candidate = Candidate(traced, gradient, id(traced.leaf) in own, among_tokens)
            return not any(rule.excludes(candidate) for rule in rules)

        return dominators(maps, scores, seed=seed, reaches=reaches, qualifies=qualifies)

    found, dominates = search(1.0, torch.any)
    if found and not dominates:
        # A layer that runs on each band of an image, say: all calls together, if each sees the image as it lies.
        of_calls, dominates = search(1.0, torch.any, "earlier call")
        dominates = dominates and all(is_aligned(maps, traced, trace.images) for traced in of_calls)
        found = of_calls if dominates else found
    if found:
        return Choice(found, True, dominates)
    # Zero times NaN is NaN: where zero weights stop every gradient, only what is not connected stays zero. A batch
    # without images, and a score that is zero for want of a detection, are connected all the same.
    for seed, reaches in ((torch.nan, torch.any), (1.0, lambda gradient: True)):
        found, _ = search(seed, reaches, "rounding noise")
        if found:
            return Choice(found, False)
    return Choice([], False)
