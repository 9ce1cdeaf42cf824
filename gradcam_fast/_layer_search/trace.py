"""A run of a model in which hooks note every feature map in the order made, with a graph behind the last of them.

Knows nothing of which map is wanted, or why.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .._capture.hooks import members_of, preserved, replace_tensor, tensor_in
from .._layout.feature_layout import UnreadableLayout
from .._layout.token_grid import Grids
from .._model.eager import force_eager

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .._model.inputs import Inputs

__all__ = ["Candidate", "Trace", "undisturbed"]


@contextmanager
def undisturbed(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Traces, and whatever is done with their graphs, leave buffers and random numbers as they were."""
    devices = {each.device for each in inputs.tensors}
    with (
        torch.inference_mode(False),
        preserved(model, all_buffers=True),
        force_eager(),
        torch.random.fork_rng([device for device in devices if device.type == "cuda"]),
    ):
        yield


@dataclass
class Candidate:
    """A feature map as it was made, and the outermost module that returned it."""

    name: str
    module: nn.Module
    maps: Tensor
    layout: FeatureLayout


@dataclass
class Trace:
    """Forward hooks on all modules that note each new map, in the order made, under its outermost module's name.

    The first ``skipped`` outputs pass unnoticed but for their grids, and leave no graph, which is what takes memory.
    Where that is infinity, nothing is noted but ``outputs``, how many there are.
    """

    names: dict[nn.Module, str]
    read: Callable[[nn.Module, Tensor], FeatureLayout]
    skipped: float
    thread: int = field(default_factory=threading.get_ident)
    outputs: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    unreadable: str = ""
    grids: Grids = field(default_factory=Grids)
    handed: dict[tuple[int, int], tuple[Tensor, Candidate | None]] = field(default_factory=dict)

    def run(self, model: nn.Module, inputs: Inputs) -> Any:
        """What the model returns."""
        handles = []
        try:
            for module in self.names:
                # Before its own hooks, which may keep what it returned for later in the forward.
                handles.append(module.register_forward_hook(self, prepend=True))
            with torch.set_grad_enabled(not self.skipped):
                return inputs.map(torch.clone)(model)
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Notes what ``module`` returned, and hands a copy of it onward."""
        maps = tensor_in(output)
        if threading.get_ident() != self.thread or maps is None:
            return None
        self.outputs += 1
        if self.outputs <= self.skipped:
            if self.skipped < math.inf:
                self._read(module, maps)
            return None
        torch.set_grad_enabled(True)
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
        if _drops(module) and not any(_identity(each) in self.handed for each in members_of(args)):
            return None  # the module around it may have made this, a sum say
        # What made it was not recorded; it may have been pooling.
        unknown = self.skipped and not maps.requires_grad
        found = maps if maps.requires_grad else maps.detach().requires_grad_()
        candidate = None
        layout = self._read(module, found)
        if layout and not (unknown or _passes_on(module, found, layout)):
            candidate = Candidate(name, module, found, layout)
            self.candidates.append(candidate)
        # What is handed onward may be changed in place; the candidate keeps the tensor as it was made.
        onward = found.clone()
        self.handed[_identity(onward)] = onward, candidate
        return replace_tensor(output, maps, onward)

    def _read(self, module: nn.Module, maps: Tensor) -> FeatureLayout | None:
        try:
            layout = self.read(module, maps)
        except UnreadableLayout as reason:
            if maps.dim() == 3:
                self.unreadable = f"layer {self.names[module]!r} returns shape {tuple(maps.shape)}, {reason}"
            return None
        if isinstance(module, _ConvNd) and layout.layout == "planes":
            self.grids.note(maps)
        if layout.inferred is None or self.grids.have(patches := layout(maps), layout.inferred):
            return layout
        grid = "x".join(map(str, patches.shape[2:]))
        self.unreadable = (
            f"layer {self.names[module]!r} returns shape {tuple(maps.shape)}, whose tokens would be {grid} patches, "
            "but no convolution made such; say which they are with tokens=..."
        )
        return None


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _drops(module: nn.Module) -> bool:
    """Whether what it returns is what came in, but for what a training step drops."""
    return isinstance(module, nn.Identity) or _is_a("Drop", module)


def _is_a(kind: str, module: nn.Module) -> bool:
    """Whether its class is named so, and it is no block of several modules with such a name."""
    return kind in type(module).__name__ and next(module.children(), None) is None


def _passes_on(module: nn.Module, maps: Tensor, layout: FeatureLayout) -> bool:
    # Softmax makes attention weights, which look like maps of as many channels as there are heads. A lone projection
    # of tokens (to queries, keys, values) has features that no one names; the norm before it is what they are made of.
    made_by = maps.grad_fn.name() if maps.grad_fn else ""
    passing = _drops(module) or _is_a("Pool", module)
    projects = isinstance(module, nn.Linear) and layout.layout != "planes"
    return passing or projects or any(word in made_by for word in ("Pool", "Softmax"))
