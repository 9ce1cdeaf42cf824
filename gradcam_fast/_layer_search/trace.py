"""A trial run of a model: hooks note every feature map in the order made, with a graph behind the last of them."""

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

from .._capture.buffers import preserve_buffers
from .._capture.containers import feature_tensor, replace_tensor, tensors_in
from .._layout.token_grid import KnownGrids, UnreadableLayout
from .._model.eager import force_eager
from .rules import is_feature_map, passes_on

if TYPE_CHECKING:
    from torch import Tensor

    from .._layout.feature_layout import FeatureLayout
    from .._model.inputs import Inputs

__all__ = ["Candidate", "Trace", "trial_run"]


@contextmanager
def trial_run(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Runs of the model inside, and the use of their graphs, leave its buffers and the random numbers as they were."""
    devices = {tensor.device for tensor in inputs.tensors}
    with (
        torch.inference_mode(False),
        preserve_buffers(model, all_modules=True),
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
    """Forward hooks on all modules that note each new feature map under the name of its outermost module.

    Args:
        names: the dotted name of each module.
        infer_layout: from a module and its output to the layout.
        skipped: so many outputs at the start only have their grids noted and leave no graph, which is what takes
            memory; infinity counts outputs and notes nothing else.

    Attributes:
        outputs: how many tensors modules returned.
        candidates: in execution order.
        unreadable: why the last output of three axes could not be read; empty if there is none.
    """

    names: dict[nn.Module, str]
    infer_layout: Callable[[nn.Module, Tensor], FeatureLayout]
    skipped: float
    outputs: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    unreadable: str = ""
    _thread: int = field(default_factory=threading.get_ident)
    _grids: KnownGrids = field(default_factory=KnownGrids)
    # Tensors handed onward, which keep their identity while they are kept here, and the candidate each is a copy of.
    _onward: dict[tuple[int, int], tuple[Tensor, Candidate | None]] = field(default_factory=dict)

    def run(self, model: nn.Module, inputs: Inputs) -> Any:
        """Run the model under the hooks; return its output."""
        handles = []
        try:
            for module in self.names:
                # Before the module's own hooks, which may keep its output for later in the forward.
                handles.append(module.register_forward_hook(self, prepend=True))
            with torch.set_grad_enabled(not self.skipped):
                return inputs.map(torch.clone)(model)
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Note what ``module`` returned, and hand a copy of it onward."""
        returned = feature_tensor(output)
        if threading.get_ident() != self._thread or returned is None:
            return None
        self.outputs += 1
        if self.outputs <= self.skipped:
            if self.skipped < math.inf:
                self._read(module, returned)
            return None
        torch.set_grad_enabled(True)
        name = self.names[module]
        # Of a module that runs again only the last call can be captured.
        self.candidates = [candidate for candidate in self.candidates if candidate.module is not module]
        if (known := self._onward.get(_identity(returned))) is not None:
            candidate = known[1]
            # A module that also returns something else (a pooled vector) may have made that of the maps.
            returns_only_maps = len(tensors_in(output)) == 1
            if candidate and returns_only_maps and candidate.name.startswith(f"{name}."):
                candidate.name, candidate.module = name, module
            return None
        if passes_on(module) and not any(_identity(tensor) in self._onward for tensor in tensors_in(args)):
            return None  # the module around it may have made this, a sum say
        # The operation that made an output without a graph is unknown; it may have been pooling.
        origin_unknown = self.skipped and not returned.requires_grad
        maps = returned if returned.requires_grad else returned.detach().requires_grad_()
        candidate = None
        layout = self._read(module, maps)
        if layout and not origin_unknown and is_feature_map(module, maps, layout):
            candidate = Candidate(name, module, maps, layout)
            self.candidates.append(candidate)
        # The tensor handed onward may be changed in place; the candidate keeps the maps as they were made.
        onward = maps.clone()
        self._onward[_identity(onward)] = onward, candidate
        return replace_tensor(output, returned, onward)

    def _read(self, module: nn.Module, maps: Tensor) -> FeatureLayout | None:
        try:
            layout = self.infer_layout(module, maps)
        except UnreadableLayout as reason:
            if maps.dim() == 3:
                self.unreadable = f"layer {self.names[module]!r} returns shape {tuple(maps.shape)}, {reason}"
            return None
        if isinstance(module, _ConvNd) and layout.kind == "planes":
            self._grids.add(maps)
        if layout.inferred_prefix is None:
            return layout
        patches = layout(maps)
        if self._grids.can_be_patches(patches, layout.inferred_prefix):
            return layout
        grid = "x".join(map(str, patches.shape[2:]))
        self.unreadable = (
            f"layer {self.names[module]!r} returns shape {tuple(maps.shape)}, whose tokens would be {grid} patches, "
            "but no convolution made such a grid; say which grid it is with tokens=..."
        )
        return None


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version
