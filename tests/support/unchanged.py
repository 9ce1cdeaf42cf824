"""`with unchanged(model):` asserts that whatever happened inside left no trace in the model or in PyTorch's state.

Knows nothing of gradcam_fast; hooks are found by PyTorch's own names for them.
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
    modes, facts, tensors = _modes(), _facts(model), _tensors(model)
    try:
        yield
    finally:
        assert _modes() == modes
        after = _facts(model)
        assert {name: fact for name, fact in after.items() if fact != facts.get(name)} == {}
        assert after.keys() == facts.keys()
        assert [name for name, tensor in _tensors(model).items() if not _same(tensor, tensors[name])] == []


def _modes():
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "global hooks": [list(getattr(torch_module, name)) for name in GLOBAL_HOOKS],
    }


def _facts(model):
    facts = {}
    for name, module in model.named_modules():
        facts[name, "module"] = id(module)
        facts[name, "attributes"] = sorted(vars(module))
        # `training`, `inplace`, `p` of a dropout ...: one flipped is surgery.
        facts[name, "settings"] = {key: value for key, value in vars(module).items() if isinstance(value, SETTINGS)}
        for kind in HOOKS:
            facts[name, kind] = list(getattr(module, kind).items())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        facts[name, "requires_grad"] = tensor.requires_grad
    # A .grad may not even be replaced by an equal one: an optimizer or a bucket may hold on to it.
    for name, parameter in model.named_parameters():
        facts[name, "parameter"] = id(parameter)
        facts[name, "grad"] = parameter.grad is not None and id(parameter.grad)
    return facts


def _tensors(model):
    tensors = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    grads = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return tensors | grads


def _same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)
