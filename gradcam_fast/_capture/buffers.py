"""Buffers during an explanation: modules in training mode write to copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .._model.own_hooks import foreign_hooks
from .._model.undo import Lock, undo_at_end
from .hooks import ModuleHooks

if TYPE_CHECKING:
    pass

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

    Other threads read and write the modules' own buffers meanwhile, so that no update of a training step is lost. (Of
    modules traced by torch.jit, they see the copies.) The context must last until the gradients are taken, because
    batch-norm's backward reads the buffers of its forward. It must be entered outside inference mode, because autograd
    cannot save copies made in inference mode.
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
        # The modules' own dictionaries of buffers, or of a module traced by torch.jit its buffers.
        self._originals: list[Any] | None = None
        # An explanation inside another one of this thread shares its lock.
        self._locks = not _SWAPPING.is_held()

    def do(self) -> None:
        _SWAPPING.acquire()
        # Threads of autograd, which may run checkpointed parts again, inherit what is stored here.
        torch._C._stash_obj_in_tls(_KEY, (*_swaps_of_thread(), self))
        originals = [
            module.__dict__["_buffers"] if _has_own_dictionary(module) else dict(module._buffers.items())
            for module in self._modules
        ]
        with torch.no_grad():
            copies = {
                id(buffer): buffer.clone() for buffers in originals for buffer in buffers.values() if buffer is not None
            }
        self._originals = originals
        for module, buffers in zip(self._modules, originals, strict=True):
            own = {name: copies.get(id(buffer)) for name, buffer in buffers.items()}
            if _has_own_dictionary(module):
                module.__dict__["_buffers"] = _BuffersByThread(self, own, buffers)
            else:
                for name, buffer in own.items():
                    setattr(module, name, buffer)

    def undo(self) -> None:
        if self._originals is not None:
            for module, buffers in zip(self._modules, self._originals, strict=True):
                if _has_own_dictionary(module):
                    module.__dict__["_buffers"] = buffers
                else:
                    for name, buffer in buffers.items():
                        setattr(module, name, buffer)
            self._originals = None
        if self in (swaps := _swaps_of_thread()):
            torch._C._stash_obj_in_tls(_KEY, tuple(swap for swap in swaps if swap is not self))
        if self._locks:
            _SWAPPING.release()


def _has_own_dictionary(module: nn.Module) -> bool:
    return isinstance(module.__dict__.get("_buffers"), (dict, _BuffersByThread))


_KEY = "gradcam_fast.buffers"


def _swaps_of_thread() -> tuple[_Swap, ...]:
    return torch._C._get_obj_in_tls(_KEY) if torch._C._is_key_in_tls(_KEY) else ()


class _BuffersByThread(MutableMapping[str, Any]):
    """A module's buffers: copies in the thread that explains, and for all others the module's own.

    So a training step in another thread reads and updates the module, and not the copies.
    """

    def __init__(self, swap: _Swap, copies: dict[str, Any], own: dict[str, Any]) -> None:
        self._swap, self._copies, self._own = swap, copies, own

    def _here(self) -> dict[str, Any]:
        return self._copies if self._swap in _swaps_of_thread() else self._own

    def __getitem__(self, name: str) -> Any:
        return self._here()[name]

    def __setitem__(self, name: str, buffer: Any) -> None:
        self._here()[name] = buffer

    def __delitem__(self, name: str) -> None:
        del self._here()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._here())

    def __len__(self) -> int:
        return len(self._here())

    def copy(self) -> dict[str, Any]:
        return self._here().copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._here(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self._here()),)


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
