"""Buffers during an explanation: modules in training mode write to copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .._model.own_hooks import foreign_hooks
from .._model.undo import Lock, undo_at_end
from .hooks import ModuleHooks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["preserve_buffers"]

# One explanation at a time swaps buffers: two models may share a module.
_SWAPPING = Lock()

_ATTRIBUTES = ("_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


@contextmanager
def preserve_buffers(model: nn.Module, *, all_modules: bool = False) -> Iterator[ModuleHooks]:
    """Give modules in training mode copies of their buffers, and put the original buffers back at the end.

    An explanation is not a training step, so it must not update running statistics. With ``all_modules``, modules in
    eval mode get copies too: a trial run is not a prediction, so it must not update what predictions update.

    Yields the kinds of hooks that the modules have.

    If a training step in another thread writes to these buffers meanwhile, its values are lost. The context must last
    until the gradients are taken, because batch-norm's backward reads the buffers of its forward. It must be entered
    outside inference mode, because autograd cannot save copies made in inference mode.
    """
    modules, hooks = _modules_with_buffers(model, all_modules)
    if not modules:
        yield hooks
        return
    swap = _Swap(modules)
    try:
        undo_at_end(swap.undo)
        swap.do()
        yield hooks
    finally:
        swap.undo()


class _Swap:
    """Buffers of modules, replaced by copies; an interruption at any place leaves something that ``undo`` undoes."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._originals: list[dict[str, Tensor | None]] | None = None
        # An explanation inside another one of this thread shares its lock.
        self._locks = not _SWAPPING.is_held()

    def do(self) -> None:
        _SWAPPING.acquire()
        originals = [dict(module._buffers.items()) for module in self._modules]
        with torch.no_grad():
            copies = {
                id(buffer): buffer.clone() for buffers in originals for buffer in buffers.values() if buffer is not None
            }
        self._originals = originals
        for module, buffers in zip(self._modules, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(module, name, copies.get(id(buffer)))

    def undo(self) -> None:
        if self._originals is not None:
            for module, buffers in zip(self._modules, self._originals, strict=True):
                for name in set(module._buffers.keys()) - buffers.keys():
                    del module._buffers[name]
                for name, buffer in buffers.items():
                    setattr(module, name, buffer)
            self._originals = None
        if self._locks:
            _SWAPPING.release()


def _modules_with_buffers(model: nn.Module, all_modules: bool) -> tuple[list[nn.Module], ModuleHooks]:
    """The modules with buffers (in training mode, or all), and the kinds of hooks that any module has.

    ``nn.Module.modules()`` would take twice as long. After a forward the processor's cache holds no module, so each
    attribute is read at most once.
    """
    modules, has_backward_hooks = [], torch_module._global_is_full_backward_hook is False
    has_hooks = bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
    pending: list[nn.Module | None] = [model]
    for module in pending:
        if module is not None:
            attributes = module.__dict__
            if "_modules" not in attributes:  # traced by torch.jit: the attributes are those of another module
                attributes = {name: getattr(module, name) for name in _ATTRIBUTES}
            if attributes["_buffers"] and (all_modules or module.training):
                modules.append(module)
            if attributes["_modules"]:
                pending.extend(attributes["_modules"].values())
            if foreign_hooks(attributes["_forward_hooks"]) or foreign_hooks(attributes["_forward_pre_hooks"]):
                has_hooks = True
            if attributes.get("_is_full_backward_hook") is False:
                has_backward_hooks = True
    return modules, ModuleHooks(has_backward_hooks, has_hooks)
