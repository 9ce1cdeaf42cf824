"""Buffers during an explanation: modules in training mode write to copies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .hooks import ModuleHooks, has_forward_hooks

__all__ = ["preserve_buffers"]

# One explanation at a time swaps buffers: two models may share a module.
_SWAPPING = threading.RLock()

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
    with _SWAPPING:
        originals = [dict(module._buffers.items()) for module in modules]
        with torch.no_grad():
            copies = {
                id(buffer): buffer.clone() for buffers in originals for buffer in buffers.values() if buffer is not None
            }
        try:
            for module, buffers in zip(modules, originals, strict=True):
                for name, buffer in buffers.items():
                    setattr(module, name, copies.get(id(buffer)))
            yield hooks
        finally:
            for module, buffers in zip(modules, originals, strict=True):
                for name in set(module._buffers.keys()) - buffers.keys():
                    del module._buffers[name]
                for name, buffer in buffers.items():
                    setattr(module, name, buffer)


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
            if has_forward_hooks(attributes["_forward_hooks"], attributes["_forward_pre_hooks"]):
                has_hooks = True
            if attributes.get("_is_full_backward_hook") is False:
                has_backward_hooks = True
    return modules, ModuleHooks(has_backward_hooks, has_hooks)
