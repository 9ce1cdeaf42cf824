"""The eager modules inside ``torch.compile`` wrappers, and a switch that runs compiled code eagerly.

Compiled code ignores hooks that were registered after it was compiled, so explanations run the eager modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .undo import Lock, undo_at_end

__all__ = ["eager_module", "eager_modules", "force_eager"]

_WRAPPER = "_orig_mod"

_lock = Lock()
# One object for each run inside `force_eager`.
_users: set[object] = set()
_stance: Any = None


def eager_module(module: Any) -> Any:
    """The module inside a ``torch.compile`` wrapper, or the module itself."""
    return getattr(module, _WRAPPER, module)


def eager_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule that runs hooks, by each of its dotted names, without the names of compile wrappers.

    ``features._orig_mod.3`` is named ``features.3``. Modules that compute parametrized weights are left out: their
    outputs are weights, not feature maps.
    """
    modules = {}
    for compiled_name, module in model.named_modules(remove_duplicate=False):
        parts = [part for part in compiled_name.split(".") if part != _WRAPPER]
        name = ".".join(parts)
        if name and not isinstance(module, torch.jit.ScriptModule) and "parametrizations" not in parts:
            modules[name] = eager_module(module)
    return modules


@contextmanager
def force_eager() -> Iterator[None]:
    """Run everything inside eagerly, however it was compiled.

    PyTorch has one such switch for the whole process, so the compiled code of other threads also runs eagerly in the
    meantime, with the same results. The first thread that enters turns it on, the last one that leaves turns it off.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        yield
        return
    user = object()

    def leave() -> None:
        _users.discard(user)
        _set_stance()

    try:
        undo_at_end(leave)
        _users.add(user)
        _set_stance()
        yield
    finally:
        leave()


def _set_stance() -> None:
    """Turn PyTorch's switch on if there are users, or off."""
    global _stance
    try:
        _lock.acquire()
        if _users and _stance is None:
            _stance = torch.compiler.set_stance("force_eager")
        elif not _users and _stance is not None:
            _stance.__exit__(None, None, None)
            _stance = None
    finally:
        _lock.release()
