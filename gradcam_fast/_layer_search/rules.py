"""The rules of the choice: which outputs are no feature maps, and which feature maps are no layer to explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..ops.heatmaps import pooled_noise

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._layout.feature_layout import FeatureLayout
    from .traced_map import TracedMap

__all__ = [
    "RULES",
    "Candidate",
    "excluding",
    "is_feature_map",
    "is_pooling",
    "passes_on",
    "projects_tokens",
]


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
        asks_places: whether what the model returns has places, so that the scores may be about one of them.
    """

    traced: TracedMap
    gradient: Tensor
    own_output: bool
    among_tokens: bool
    asks_places: bool


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


def is_pooling(module: nn.Module) -> bool:
    """Whether the module is a pooling, by its class."""
    return _leaf_named("Pool", module)


def projects_tokens(maker: nn.Module, layout: FeatureLayout) -> bool:
    """Whether maps are what a linear layer makes of tokens, or of maps whose channels are last."""
    return isinstance(maker, nn.Linear) and layout.kind != "planes"


def _leaf_named(kind: str, module: nn.Module) -> bool:
    """Whether the class has this word in its name and the module has no submodules."""
    return kind in type(module).__name__ and next(module.children(), None) is None


def _made_by(word: str, maps: Tensor) -> bool:
    return maps.grad_fn is not None and word in maps.grad_fn.name()


def _is_softmax(node: Node | None) -> bool:
    """Whether a softmax is all that happened, but for a mean over the heads."""
    while node is not None and any(word in node.name() for word in ("Mean", "View")):
        node = node.next_functions[0][0]
    return node is not None and "Softmax" in node.name()


def _is_noise(gradient: Tensor) -> bool:
    """Whether the gradient (B,C,h,w) pools to less than its dtype, or float32, tells from zero."""
    sums, of_magnitudes = (values.flatten(2).sum(2, dtype=torch.float64) for values in (gradient, gradient.abs()))
    return len(gradient) > 0 and bool(sums.abs().amax() <= pooled_noise(gradient.dtype) * of_magnitudes.amax())


def _is_of_one_place(gradient: Tensor) -> bool:
    reached = gradient.abs().amax(1).flatten(1) != 0
    return bool(reached.any()) and bool((reached.sum(1) <= 1).all())


RULES = (
    Rule("passes on", "it is what another module made", Returned, lambda output: passes_on(output.module)),
    Rule(
        "pooling",
        "a pooled map is the map before it at a lower resolution",
        Returned,
        lambda output: is_pooling(output.module) or _made_by("Pool", output.maps),
    ),
    Rule(
        "padding",
        "a padded map is the map before it with a border, and would be laid beside the image's places",
        Returned,
        lambda output: _leaf_named("Pad", output.module) or _made_by("Pad", output.maps),
    ),
    Rule(
        "softmax",
        "attention weights look like maps with as many channels as heads",
        Returned,
        lambda output: _is_softmax(output.maps.grad_fn),
    ),
    Rule(
        "own output",
        "a prediction is no explanation of itself: behind a feature map, channels are mixed",
        Candidate,
        lambda candidate: candidate.own_output,
    ),
    Rule(
        "projection of tokens",
        "queries, keys and values are no features that anyone names; the norm before them is what they are made of",
        Candidate,
        lambda candidate: candidate.traced.is_projection,
    ),
    Rule(
        "axes of attention",
        "among tokens, four axes may be (B, heads, tokens, features)",
        Candidate,
        lambda candidate: candidate.among_tokens and not candidate.traced.layout.fits,
    ),
    Rule(
        "behind the first tensor",
        "a capture keeps the first tensor that a layer returns",
        Candidate,
        lambda candidate: not candidate.traced.captured,
    ),
    Rule(
        "earlier call",
        "the name of a layer stands for its last call on the images; of several pictures every call has one",
        Candidate,
        lambda candidate: not candidate.traced.last_call and candidate.traced.pictures is None,
    ),
    Rule(
        "one place",
        "what a model reads of one place, as of a recurrent one's last step, was gathered there from the others",
        Candidate,
        lambda candidate: not candidate.asks_places and _is_of_one_place(candidate.gradient),
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
    return not excluding(Returned(module, maps, layout))


def excluding(subject: Returned | Candidate) -> set[str]:
    """The names of the rules that exclude something."""
    return {rule.name for rule in RULES if rule.about is type(subject) and rule.excludes(subject)}
