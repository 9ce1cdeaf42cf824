"""The layers that searches have found, for every model and kind of question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from .._capture.containers import all_tensors
from .._capture.scores import as_class_logits
from .._model.recent import Recent
from .model_output import signature

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.request import Request
    from .._model.target_layer import TargetLayer
    from .model_output import Path, Signature

__all__ = ["FoundLayer", "Memory", "forget", "memory_of"]

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
class Memory:
    """What has been found for requests of one key.

    Attributes:
        starts: where the graph of a capture has to begin, so that it shows which parts of the output a score reads:
            without them, a late layer hides the heads before it. None if the layers are late enough.
        channel_axes: of the returned tensors that are maps, by their place.
        parts: of the model's output.
        has_parts: whether these are several, and not one on several paths.
        layers: by the parts that the scores come from.
    """

    starts: tuple[FoundLayer, ...] = ()
    channel_axes: Mapping[int, int] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()
    has_parts: bool = True
    layers: Recent[Signature, tuple[FoundLayer, ...]] = field(default_factory=Recent)

    def signature(self, request: Request, logits: Any, scores: Tensor, returned: Any) -> Signature:
        """Which parts of the output are asked about: of the highest logits all, as the class predicted must not matter.

        The host waits for the device, if there are several.
        """
        if not self.has_parts and request.output is None and not callable(request.target):
            return _ONLY_PART
        by_values = request.target is not None
        if not by_values:
            scores = as_class_logits(logits, request.geometry.batch)
        return signature(scores, all_tensors(returned), self.parts, self.channel_axes, by_values=by_values)


_MEMORY: WeakKeyDictionary[nn.Module, Recent[Any, Memory]] = WeakKeyDictionary()


def memory_of(model: nn.Module, request: Request) -> Memory:
    """What has been found for requests of this kind; it may be added to."""
    return _MEMORY.setdefault(model, Recent()).setdefault(_key(request), Memory())


def forget(model: nn.Module, request: Request) -> None:
    """Empty the memory of requests of this kind."""
    _MEMORY[model].forget(_key(request))


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
