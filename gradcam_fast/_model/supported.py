"""Which models can be explained: tables of the kinds that cannot, each with the reason and the way out.

Each kind is looked up in the PyTorch module that defines it. If that module has not been imported, no model can be of
that kind.
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
    "whose layers are inlined into one graph, where hooks do not run; give the nn.Module that was exported, or "
    "torch.export.unflatten(the ExportedProgram)"
)
_SHARDED = (
    "with only a part of the parameters in each process; load the full state dict into an nn.Module that is not "
    "distributed, and give that one"
)
_QUANTISED = "which is quantised and has no gradient; give the floating-point nn.Module from before the quantisation"

# Kinds that the model itself must not be: (PyTorch's module, class, reason and way out).
_UNSUPPORTED_MODELS = (
    ("torch.export", "ExportedProgram", _GRAPH),
    ("torch.jit", "ScriptModule", "whose modules take no hooks; give the nn.Module it was made from"),
    ("torch.nn", "DataParallel", "which copies the model per device; give its .module"),
)

# Kinds that neither the model nor any module or parameter inside it may be, likewise.
_UNSUPPORTED_PARTS = (
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
    """Refuse a model of a kind that cannot be explained, without running the model.

    Raises:
        UnsupportedModel: hooks would not run, gradients would not flow, or the model would not stay as it is.
        TypeError: the model is not an ``nn.Module``.
    """
    for kind, why in _imported_kinds(_UNSUPPORTED_MODELS):
        if isinstance(model, kind):
            raise UnsupportedModel(f"model is {_with_article(model)}, {why}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {_with_article(model)}; give a torch.nn.Module")
    if isinstance(model, torch.fx.GraphModule) and _calls_no_module(model):
        raise UnsupportedModel(f"model is {_with_article(model)}, {_GRAPH}")
    types: set[type] = set()
    for module in model.modules():
        types.add(type(module))
        types.update(map(type, module._parameters.values()))
    for kind, why in _imported_kinds(_UNSUPPORTED_PARTS):
        if any(issubclass(part, kind) for part in types):
            raise UnsupportedModel(f"model {_where(model, kind)}, {why}")


def _imported_kinds(table: tuple[tuple[str, str, str], ...]) -> Iterator[tuple[type, str]]:
    for module, name, why in table:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            yield kind, why


def _calls_no_module(model: torch.fx.GraphModule) -> bool:
    # torch.export inlines all layers, and adds one module that checks the inputs. A symbolic trace calls the layers.
    return not any(node.op == "call_module" and node.target != "_guards_fn" for node in model.graph.nodes)


def _where(model: nn.Module, kind: type) -> str:
    for name, part in (*model.named_modules(), *model.named_parameters()):
        if isinstance(part, kind):
            return f"has {_with_article(part)} at {name!r}" if name else f"is {_with_article(part)}"
    raise AssertionError(f"no {kind.__name__} in {type(model).__name__}")


def _with_article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
