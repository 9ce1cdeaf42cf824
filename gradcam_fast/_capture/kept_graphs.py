"""Tensors with a graph that a model keeps in attributes: biases cached in eval mode, attention maps for later.

A prediction without gradients would keep them without a graph. With one, they would hold an explanation's memory, and
the model could be neither copied nor saved.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, MutableMapping, MutableSequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

__all__ = ["forget_graphs"]

# For each model and kind of run: the modules that kept such tensors in the first run. Only these are looked through
# from then on.
_KEEPERS: WeakKeyDictionary[nn.Module, dict[Any, list[ref[nn.Module]]]] = WeakKeyDictionary()

# What nn.Module itself keeps; buffers are put back elsewhere.
_OWN_ATTRIBUTES = frozenset(nn.Module().__dict__)

_MISSING = object()


@contextmanager
def forget_graphs(model: nn.Module, kind: Hashable, *, restore: bool) -> Iterator[None]:
    """Take the graph off tensors that the model has kept inside, at the end.

    Args:
        kind: of run; in runs of one kind the graph begins at the same layers.
        restore: put back what was there before, instead of the tensors without their graph.
    """
    known = _KEEPERS.setdefault(model, {}).get(kind)
    modules = list(model.modules()) if known is None else [module for keeper in known if (module := keeper())]
    before = [_copied(module.__dict__) for module in modules]
    keepers: list[nn.Module] = []
    try:
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            if _forget(module.__dict__, attributes, restore):
                keepers.append(module)
    if known is None:
        _KEEPERS[model][kind] = list(map(ref, keepers))


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes that are not PyTorch's own; dictionaries and lists of tensors are copied."""
    copied: dict[str, Any] = {}
    for name, value in attributes.items():
        if name not in _OWN_ATTRIBUTES:
            copied[name] = dict(value) if type(value) is dict else list(value) if type(value) is list else value
    return copied


def _forget(attributes: MutableMapping[Any, Any], before: dict[Any, Any], restore: bool) -> bool:
    """Take the graph off new tensors in attributes, and in dictionaries and lists there; whether there were any."""
    found = False
    for name, value in list(attributes.items()):
        if name in _OWN_ATTRIBUTES:
            continue
        old = before.get(name, _MISSING)
        if _is_new(value, old):
            found = True
            if not restore:
                attributes[name] = value.detach()
            elif old is _MISSING:
                del attributes[name]
            else:
                attributes[name] = old
        elif type(value) is dict:
            found |= _forget(value, old if isinstance(old, dict) else {}, restore)
        elif type(value) is list:
            found |= _forget_in_list(value, old if isinstance(old, list) else [], restore)
    return found


def _forget_in_list(values: MutableSequence[Any], before: list[Any], restore: bool) -> bool:
    known = set(map(id, before))
    new = [place for place, value in enumerate(values) if id(value) not in known and _is_new(value, None)]
    if new and restore:
        values[:] = before
    else:
        for place in new:
            values[place] = values[place].detach()
    return bool(new)


def _is_new(value: Any, old: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.grad_fn is not None and value is not old
