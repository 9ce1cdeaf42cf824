"""What a model's Python code would do differently is noticed here: modes, hooks, modules and the addresses of tensors.

A recording or a compiled graph runs without that code. The fingerprint is compared at every run; it takes microseconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["buffer_versions", "fingerprint", "needs_its_code_because"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Hooks of all modules in the process (torch.nn.modules.module.register_module_forward_hook ...).
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{kind}") for kind in _HOOKS)
_PACKAGE = __name__.partition(".")[0]


def needs_its_code_because(model: nn.Module) -> str | None:
    """Why the model cannot run without its Python code; None if no reason is known."""
    if any(_GLOBAL_HOOKS):
        return "all modules of this process have a hook, which would not run"
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return f"{_describe(name, module)} is scripted, and changes inside it cannot be detected"
        if module.training:
            return f"{_describe(name, module)} is in training mode; call model.eval()"
        if any(_is_foreign(hook) for kind in _HOOKS for hook in getattr(module, kind).values()):
            return f"{_describe(name, module)} has a hook, which would not run"
    return None


def _describe(name: str, module: nn.Module) -> str:
    return f"module {name!r}" if name else f"the model ({type(module).__name__})"


def _is_foreign(hook: Any) -> bool:
    # Explanations of the same model in other threads register hooks of this package for the time of their call.
    return type(hook).__module__.partition(".")[0] != _PACKAGE


def fingerprint(model: nn.Module) -> list[Any]:
    """Equal to an earlier fingerprint if modules, modes, hooks and the addresses of all tensors are the same.

    Values written into the tensors do not count. Module attributes that are neither parameters, buffers nor modules are
    not included, nor is the inside of a scripted module.
    """
    entries: list[Any] = [hook for hooks in _GLOBAL_HOOKS for hook in hooks.values()]
    add, pending = entries.append, [model]
    # Runs on every call, so: plain loops over the modules' own dictionaries, without the slow __getattr__.
    while pending:
        attributes = pending.pop().__dict__
        if "training" not in attributes:  # scripted, which needs_its_code_because refuses
            continue
        add(attributes["training"])
        for parameter in attributes["_parameters"].values():
            if parameter is not None:
                add(parameter.data_ptr())
        for buffer in attributes["_buffers"].values():
            if buffer is not None:
                add(buffer.data_ptr())
        for kind in _HOOKS:
            if attributes[kind]:
                entries.extend(filter(_is_foreign, attributes[kind].values()))
        for child in attributes["_modules"].values():
            if child is not None:
                add(child)
                pending.append(child)
    return entries


def buffer_versions(model: nn.Module) -> list[Any]:
    """A list that changes whenever a forward writes to a buffer or replaces one."""
    return [(id(buffer), None if buffer.is_inference() else buffer._version) for buffer in model.buffers()]
