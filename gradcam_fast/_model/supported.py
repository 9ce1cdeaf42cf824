"""Which models can be explained: a table of the kinds that cannot, each with the reason and the way out.

A kind is looked up in the PyTorch module that defines it, if that is imported; no model is of a kind whose module is
not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..exceptions import UnsupportedModel

__all__ = ["check_supported"]

_GRAPH = (
    "whose layers are one graph that no hook sees into; give the nn.Module that was exported, or "
    "torch.export.unflatten(the ExportedProgram)"
)
_SHARDED = (
    "with only a part of the parameters in each process; load the full state dict into an nn.Module that is not "
    "distributed, and give that one"
)
_QUANTISED = "which is quantised and has no gradient; give the floating-point nn.Module from before the quantisation"

# What the model itself must not be: (module of PyTorch, class, why not and what to do).
_WHOLE = (
    ("torch.export", "ExportedProgram", _GRAPH),
    ("torch.jit", "ScriptModule", "whose modules take no hooks; give the nn.Module it was made from"),
    ("torch.nn", "DataParallel", "which copies the model per device; give its .module"),
)

# What neither the model nor any module or parameter inside it must be.
_ANYWHERE = (
    (
        "torch.nn.parallel",
        "DistributedDataParallel",
        "which waits for the gradients of all its parameters after each forward; give its .module instead",
    ),
    ("torch.distributed.fsdp", "FullyShardedDataParallel", _SHARDED),
    ("torch.distributed.fsdp", "FSDPModule", _SHARDED),
    ("torch.distributed.tensor", "DTensor", _SHARDED),
    ("torch.ao.nn.quantized.modules.utils", "WeightedQuantizedModule", _QUANTISED),
    ("torch.ao.nn.quantized.dynamic.modules.rnn", "RNNBase", _QUANTISED),
    (
        "torch.nn.parameter",
        "UninitializedParameter",
        "whose shape the first forward decides; run the model once before",
    ),
)


def check_supported(model: Any) -> None:
    """Refuse a model that cannot be explained, without running it.

    Raises:
        UnsupportedModel: hooks would not run, gradients would not flow, or the model would not stay as it is.
        TypeError: not an ``nn.Module``.
    """
    for kind, why in _imported(_WHOLE):
        if isinstance(model, kind):
            raise UnsupportedModel(f"model is {_a(model)}, {why}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {_a(model)}; give a torch.nn.Module")
    if isinstance(model, torch.fx.GraphModule) and _calls_no_module(model):
        raise UnsupportedModel(f"model is {_a(model)}, {_GRAPH}")
    types: set[type] = set()
    for module in model.modules():
        types.add(type(module))
        types.update(map(type, module._parameters.values()))
    for kind, why in _imported(_ANYWHERE):
        if any(issubclass(part, kind) for part in types):
            raise UnsupportedModel(f"model {_where(model, kind)}, {why}")


def _imported(table: tuple[tuple[str, str, str], ...]) -> Iterator[tuple[type, str]]:
    for module, name, why in table:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            yield kind, why


def _calls_no_module(model: torch.fx.GraphModule) -> bool:
    # torch.export adds a module that checks the inputs; a symbolic trace calls the very layers of the model.
    return not any(node.op == "call_module" and node.target != "_guards_fn" for node in model.graph.nodes)


def _where(model: nn.Module, kind: type) -> str:
    for name, part in (*model.named_modules(), *model.named_parameters()):
        if isinstance(part, kind):
            return f"has {_a(part)} at {name!r}" if name else f"is {_a(part)}"
    raise AssertionError(f"no {kind.__name__} in {type(model).__name__}")


def _a(thing: object) -> str:
    name = type(thing).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
