"""One forward that leaves, at chosen layers, the activations and a graph only behind them.

Knows nothing of scores, of kernels or of pictures. Nothing of the model is changed that is not put back.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..exceptions import LayerNotRun

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.inputs import Inputs
    from .._model.target_layer import TargetLayer

__all__ = ["forward", "preserved"]

# How often a module ran in its last forward, so that the next one opens the graph only at the last call.
_CALLS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_EVERY_CALL = 0

# PyTorch 2.10 keeps the weights that autocast has cast without a graph, and a training step in the same autocast block
# would go no further than these.
_FORGETS_CASTS = torch.__version__ < "2.11"

# Modules in training mode are lent other buffers during an explanation: one explanation at a time, because two models
# may share a module.
_LENDING = threading.RLock()


def forward(
    model: nn.Module, inputs: Inputs, layers: Sequence[TargetLayer], *, throughout: bool = False
) -> tuple[Any, list[Tensor], list[Tensor]]:
    """Run the model once; return its output and each layer's activations, with the graph from there to the output.

    And for each layer the copy of the activations that was handed onward.

    Up to the earliest of the layers nothing is recorded. There the layer's output becomes a leaf, and a copy of it is
    handed onward, so that what follows may work in place. Of a layer that runs several times the last call counts;
    if it runs fewer times than it did before, the model is run a second time.

    A model that turns gradients off around a layer, and then on again as they were, needs them ``throughout``.

    Grad mode and hooks are afterwards as they were, also when the model raises. In inference mode there are no graphs,
    and what is compiled looks for no hooks: neither may be on (``eagerly``).

    Raises:
        LayerNotRun: a layer did not run.
    """
    inputs = inputs.map(_usable)
    watches = [_Watch(layer, alone=len(layers) == 1) for layer in layers]
    output = _watched(model, inputs, watches, throughout)
    if any(watch.activations is None and watch.calls for watch in watches):
        for watch in watches:
            watch.open_at = _CALLS[watch.layer.module] = _EVERY_CALL
        output = _watched(model, inputs, watches, throughout)
    activations, handed = [], []
    for watch in watches:
        if watch.activations is None or watch.handed is None:
            raise LayerNotRun(watch.layer.name)
        if _CALLS.get(watch.layer.module) != _EVERY_CALL:
            _CALLS[watch.layer.module] = watch.calls
        activations.append(watch.activations)
        handed.append(watch.handed)
    return output, activations, handed


def _usable(value: Tensor) -> Tensor:
    # An inference tensor can be neither changed in place nor saved for a backward outside of inference mode.
    return value.clone() if value.is_inference() else value


class _Watch:
    """A forward hook on one layer, before any of its own, for the thread that made it.

    What the layer's own hooks keep of its output for later in the forward is what was handed onward.
    """

    def __init__(self, layer: TargetLayer, *, alone: bool) -> None:
        self.layer = layer
        self.alone = alone
        self.open_at = _CALLS.get(layer.module, 1)
        self.thread = threading.get_ident()
        self.calls = 0
        self.activations: Tensor | None = None
        self.handed: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != self.thread:
            return None
        self.calls += 1
        if self.calls < self.open_at:
            return None
        found = tensor_in(output)
        if found is None:
            raise TypeError(
                f"layer {self.layer.name!r} returned a {type(output).__name__} without a floating tensor; "
                "choose a layer that returns feature maps"
            )
        torch.set_grad_enabled(True)
        # A lone layer needs no graph before it. Several may lie behind one another: the later ones stay attached.
        return self.hand_on(output, found, attached=found.requires_grad and not self.alone)

    def hand_on(self, output: Any, found: Tensor, *, attached: bool) -> Any:
        """The layer's output with a copy of the activations, from which on there is a graph."""
        self.activations = found if attached else found.detach().requires_grad_()
        self.handed = self.activations.clone()
        return replace_tensor(output, found, self.handed)


class _Revision:
    """A forward hook behind a layer's own: what these have changed is what the model sees, and what is explained."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        watch = self.watch
        found = tensor_in(output)
        if threading.get_ident() != watch.thread or watch.handed is None or found is None:
            return None
        return watch.hand_on(output, found, attached=found.requires_grad)


def _watched(model: nn.Module, inputs: Inputs, watches: Sequence[_Watch], throughout: bool) -> Any:
    handles = []
    try:
        for watch in watches:
            watch.calls, watch.activations, watch.handed = 0, None, None
            module = watch.layer.module
            if module._forward_hooks:
                handles.append(module.register_forward_hook(_Revision(watch)))
            handles.append(module.register_forward_hook(watch, prepend=True))
        with torch.set_grad_enabled(throughout):
            return inputs(model)
    finally:
        for handle in handles:
            handle.remove()
        if _FORGETS_CASTS:
            torch.clear_autocast_cache()


def tensor_in(output: Any) -> Tensor | None:
    """The feature maps in a module's output: the tensor itself, or the first floating one of a tuple, list or dict."""
    return next((each for each in members_of(output) if each.dtype.is_floating_point), None)


def members_of(output: Any) -> list[Tensor]:
    """The tensors in a module's output: the tensor itself, or those in a tuple, list or dict."""
    members = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [member for member in (output, *members) if isinstance(member, torch.Tensor)]


def replace_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with ``old`` replaced by ``new``, in the same type of container."""
    if output is old:
        return new
    if isinstance(output, MutableMapping):
        changed = copy.copy(output)
        for key, value in output.items():
            if value is old:
                changed[key] = new
        return changed
    members = [new if member is old else member for member in output]
    return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)


@contextmanager
def preserved(model: nn.Module, *, all_buffers: bool = False) -> Iterator[bool]:
    """Lend the modules in training mode copies of their buffers: an explanation is not a training step.

    With ``all_buffers`` those in eval mode, too: what they write belongs to a prediction, but not to a trial.

    Gives whether a module has had a hook of ``register_backward_hook``: PyTorch puts these on nodes of the graph, where
    they cannot be seen.

    What another thread's training step writes to these buffers meanwhile is lost with the copies. Must last until the
    gradients are taken, because batch-norm's backward reads the buffers of its forward; and begin outside of inference
    mode, whose copies no graph could keep.
    """
    borrowers, hidden = _visited(model, all_buffers)
    if not borrowers:
        yield hidden
        return
    with _LENDING:
        own = [dict(module._buffers.items()) for module in borrowers]
        with torch.no_grad():
            copies = {id(each): each.clone() for buffers in own for each in buffers.values() if each is not None}
        try:
            for module, buffers in zip(borrowers, own, strict=True):
                for name, buffer in buffers.items():
                    setattr(module, name, copies.get(id(buffer)))
            yield hidden
        finally:
            for module, buffers in zip(borrowers, own, strict=True):
                for name in set(module._buffers.keys()) - buffers.keys():
                    del module._buffers[name]
                for name, buffer in buffers.items():
                    setattr(module, name, buffer)


def _visited(model: nn.Module, all_buffers: bool) -> tuple[list[nn.Module], bool]:
    """Modules with buffers, those in training mode or all; and whether any has had a backward hook that is not full.

    nn.Module.modules() takes twice as long to visit them. After a forward every module has to come from memory again:
    each of its attributes is read once, or never.
    """
    borrowers, hidden = [], torch_module._global_is_full_backward_hook is False
    pending: list[nn.Module | None] = [model]
    for module in pending:
        if module is not None:
            own = module.__dict__
            if "_modules" not in own:  # traced by torch.jit: it has these from another module
                own = {name: getattr(module, name) for name in ("_buffers", "_modules")}
            if own["_buffers"] and (all_buffers or module.training):
                borrowers.append(module)
            if own["_modules"]:
                pending.extend(own["_modules"].values())
            if own.get("_is_full_backward_hook") is False:
                hidden = True
    return borrowers, hidden
