"""`with unchanged(model):` asserts that the code inside leaves the model and PyTorch's state as they were.

Hooks are looked up by the names of PyTorch's own attributes.
"""

from contextlib import contextmanager

import torch
from torch.nn.modules import module as torch_module

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
SETTINGS = (bool, int, float, str, tuple)
GLOBAL_HOOKS = tuple(name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks"))


@contextmanager
def unchanged(model):
    """Raise AssertionError unless modes, hooks, flags, attributes, parameters, buffers and .grad are as before."""
    modes, state, tensors = _modes(), _model_state(model), _tensors(model)
    try:
        yield
    finally:
        assert _modes() == modes
        after = _model_state(model)
        assert {name: value for name, value in after.items() if value != state.get(name)} == {}
        assert after.keys() == state.keys()
        assert [name for name, tensor in _tensors(model).items() if not _same(tensor, tensors[name])] == []


def _modes():
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "global hooks": [list(getattr(torch_module, name)) for name in GLOBAL_HOOKS],
        "call of modules": torch.nn.Module.__call__,
        "modes": (
            list(torch.overrides._get_current_function_mode_stack()),
            list(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
        ),
    }


def _model_state(model):
    state = {}
    for name, module in model.named_modules():
        state[name, "module"] = id(module)
        state[name, "attributes"] = sorted(vars(module))
        # `training`, `inplace`, `p` of a dropout ...: none may change.
        state[name, "settings"] = {key: value for key, value in vars(module).items() if isinstance(value, SETTINGS)}
        for kind in HOOKS:
            state[name, kind] = list(getattr(module, kind).items())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[name, "requires_grad"] = tensor.requires_grad
    # A .grad must stay the same object: an optimizer or a bucket may hold it.
    for name, parameter in model.named_parameters():
        state[name, "parameter"] = id(parameter)
        state[name, "grad"] = parameter.grad is not None and id(parameter.grad)
    return state


def _tensors(model):
    tensors = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    grads = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return tensors | grads


def _same(tensor, before):
    return tensor.dtype == before.dtype and torch.equal(tensor, before)
