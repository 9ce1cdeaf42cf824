"""What searches have found, for every model: the layers for each kind of question, and which tokens are patches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from .._capture.containers import all_tensors
from .._capture.scores import as_class_logits, pick_logits
from .._model.recent import Recent
from .model_output import signature
from .rules import passes_on

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.module_runs import ModuleRuns
    from .._capture.request import Request
    from .._layout.token_grid import NoPatches, PatchTokens
    from .._model.target_layer import TargetLayer
    from .model_output import Path, Signature

__all__ = ["Depth", "FoundLayer", "Memory", "idle_modules", "known_patch_tokens", "memory_of"]

# Of a model that ends early or skips blocks.
_MOST_DEPTHS = 16
# The signature of all questions about an output of one part.
_ONLY_PART: Signature = frozenset({()})


class FoundLayer(NamedTuple):
    """The name of a layer, and its ``TargetLayer.call``."""

    name: str
    call: Any

    @classmethod
    def of(cls, layer: TargetLayer) -> FoundLayer:
        return cls(layer.name, layer.call)


@dataclass
class Depth:
    """What has been found for requests of one key where the same modules ran.

    Attributes:
        ran: names of the modules that returned what may be maps.
        starts: where the graph of a capture has to begin, so that it shows which parts of the output a score reads:
            without them, a late layer hides the heads before it. None if the layers are late enough.
        channel_axes: of the returned tensors that are maps, by their place.
        parts: of the model's output.
        has_parts: whether these are several, and not one on several paths.
        layers: by the parts that the scores come from.
    """

    ran: frozenset[str]
    starts: tuple[FoundLayer, ...] = ()
    channel_axes: Mapping[int, int] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()
    has_parts: bool = True
    layers: Recent[Signature, tuple[FoundLayer, ...]] = field(default_factory=Recent)

    def signature(self, request: Request, logits: Any, scores: Tensor, returned: Any) -> Signature:
        """Which parts of the output are asked about: all, where the class predicted would decide.

        The host waits for the device, if there are several.
        """
        if not self.has_parts and request.output is None and not callable(request.target):
            return _ONLY_PART
        by_values = not request.follows_prediction
        if not by_values:
            scores = as_class_logits(pick_logits(logits, None), request.geometry.batch)
        return signature(scores, all_tensors(returned), self.parts, self.channel_axes, by_values=by_values)


@dataclass
class Memory:
    """What has been found for requests of one key: by depth, because a model may end early, or skip blocks.

    Attributes:
        watched: names of modules that tell depths apart: those that did not run in some search, or that returned maps
            behind the layers found.
        depths: the last ones found first.
    """

    watched: frozenset[str] = frozenset()
    depths: tuple[Depth, ...] = ()

    def at(self, runs: ModuleRuns) -> Depth | None:
        """The depth at which the same of the modules ran that were watched; None if there was none."""
        watched = frozenset(runs.modules.values())
        return next((depth for depth in self.depths if depth.ran & watched == runs.names), None)

    def enter(self, ran: frozenset[str], watched: frozenset[str]) -> Depth:
        """The depth at which a search has found these modules to run, and whether those to be watched do."""
        self.watched |= watched
        alike = next((depth for depth in self.depths if not (depth.ran ^ ran) & self.watched), None)
        depth = alike or Depth(ran)
        self.depths = (depth, *(other for other in self.depths if other is not depth))[:_MOST_DEPTHS]
        return depth

    def forget(self, ran: frozenset[str]) -> None:
        """Forget the depth at which these modules ran."""
        self.depths = tuple(depth for depth in self.depths if (depth.ran ^ ran) & self.watched)


def idle_modules(names: Mapping[nn.Module, str], ran: Collection[nn.Module]) -> Iterator[str]:
    """The names of the outermost modules that did not run, but may do so in another forward.

    Attention reads the weights of its linear layers without a call, and dropout within itself; these make no layers to
    explain.
    """
    outer = "."
    for name, module in sorted(((name, module) for module, name in names.items()), key=itemgetter(0)):
        makes_maps = type(module).forward is not nn.Module.forward and not isinstance(module, nn.Linear)
        if makes_maps and not passes_on(module) and module not in ran and not name.startswith(outer):
            outer = f"{name}."
            yield name


# For each model and shape of an image: which tokens are patches, by their number.
_PATCH_TOKENS: WeakKeyDictionary[nn.Module, Recent[tuple[int, ...], dict[int, PatchTokens | NoPatches]]] = (
    WeakKeyDictionary()
)
_MEMORY: WeakKeyDictionary[nn.Module, Recent[Any, Memory]] = WeakKeyDictionary()


def memory_of(model: nn.Module, request: Request) -> Memory:
    """What has been found for requests of this kind; it may be added to."""
    return _MEMORY.setdefault(model, Recent()).setdefault(_key(request), Memory())


def known_patch_tokens(model: nn.Module, images: Tensor) -> dict[int, PatchTokens | NoPatches]:
    """What trial runs on images of this shape have told about the model's tokens; they add to it."""
    return _PATCH_TOKENS.setdefault(model, Recent()).setdefault(tuple(images.shape[1:]), {})


def _key(request: Request) -> Any:
    """Requests with one key and one signature of their scores are about the same layers."""
    kind = "callable" if callable(request.target) else "classes" if request.target is not None else "highest logits"
    tokens = _code_of(request.tokens) if callable(request.tokens) else request.tokens
    return tuple(request.images.shape[1:]), tokens, kind


def _code_of(function: Any) -> Any:
    """The code of a function: many callers make theirs anew for every call. The type, for another callable."""
    if isinstance(function, partial):
        return _code_of(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))
