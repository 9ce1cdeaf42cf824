"""What a recorded run of a model stands on and cannot see change: where its tensors lie, its modes and its hooks.

A fingerprint takes microseconds, so that one can be taken on every call. Knows nothing of recordings or explanations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["fingerprint", "unrecordable_because", "versions"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PACKAGE = __name__.partition(".")[0]


def fingerprint(model: nn.Module) -> list[Any]:
    """Equal to one taken before if the model has the same modules, modes and hooks, and its tensors lie where they did.

    Values written into the tensors do not count: a recorded run reads them anew. Module attributes that are neither
    parameters, buffers nor modules are not looked at, nor is what is inside a scripted module.
    """
    marks: list[Any] = []
    add, pending = marks.append, [model]
    # Written for speed: plain loops over the modules' own dictionaries, without the slow __getattr__.
    while pending:
        module = pending.pop().__dict__
        if "training" not in module:  # scripted, which unrecordable_because refuses
            continue
        add(module["training"])
        for each in module["_parameters"].values():
            if each is not None:
                add(each.data_ptr())
        for each in module["_buffers"].values():
            if each is not None:
                add(each.data_ptr())
        for name in _HOOKS:
            if module[name]:
                marks.extend(filter(_foreign, module[name].values()))
        for each in module["_modules"].values():
            if each is not None:
                add(each)
                pending.append(each)
    return marks


def _foreign(hook: Any) -> bool:
    # Explanations of the same model in other threads put hooks on it for the time of their call.
    return type(hook).__module__.partition(".")[0] != _PACKAGE


def versions(model: nn.Module) -> list[Any]:
    """Changes whenever a forward writes to a buffer or replaces one."""
    return [(id(each), None if each.is_inference() else each._version) for each in model.buffers()]


def unrecordable_because(model: nn.Module, device: torch.device) -> str | None:
    """Why a run of the model cannot be repeated without its Python; None if it can, as far as is seen from here."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return f"{_called(name, module)} is scripted, and what it is made of cannot be watched"
        if module.training:
            return f"{_called(name, module)} is in training mode; model.eval() ends that"
        if any(_foreign(hook) for kind in _HOOKS for hook in getattr(module, kind).values()):
            return f"{_called(name, module)} has a hook, which would not run in a replay"
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device not in (device, torch.device("cpu")):
            return f"the model lies on {tensor.device}, too, and the images on {device}"
    return None


def _called(name: str, module: nn.Module) -> str:
    return f"module {name!r}" if name else f"the model ({type(module).__name__})"
