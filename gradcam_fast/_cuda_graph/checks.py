"""A run that is watched, operation by operation, for what a capture would fail at, or hold wrongly in silence.

Knows nothing of captures themselves, of models or of explanations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CannotRecord", "rehearse"]


class CannotRecord(Exception):
    """The function does something that no recording holds. No RuntimeError, which a backward may try to work around."""


def rehearse(function: Callable[[], Any], device: torch.device) -> list[torch.UntypedStorage]:
    """Run the function, and return the memory that it reads and has not made, unless a capture could not hold the run.

    Not all is seen: a tensor made of Python numbers on the device, for one, is noticed by the capture only.

    Raises:
        CannotRecord: the host waits for the device, or memory of the host is copied, which need not be there later.
    """
    with _Rehearsal(device.type) as rehearsal:
        function()
    return list(rehearsal.read.values())


class _Rehearsal(TorchDispatchMode):
    """Looks at each operation before it runs, of the backward too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.read: dict[int, torch.UntypedStorage] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].device.type == self.kind and _waits(func, args):
            raise CannotRecord(f"{func} makes the host wait for the device")
        self.read.update((key, memory) for key, memory in _memory(args, kwargs) if key not in self.made)
        result = func(*args, **kwargs)
        self.made.update(key for key, _ in _memory(result) if key not in self.read)
        if func in _COPYING:
            source = args[_COPYING[func]]
            if source.device.type != result.device.type:
                raise CannotRecord(f"{func} copies from {source.device} to {result.device} in every run")
        return result


def _memory(*values: Any) -> Iterator[tuple[int, torch.UntypedStorage]]:
    for each in tree_leaves(values):
        if isinstance(each, torch.Tensor) and each.layout is torch.strided:
            memory = each.untyped_storage()
            yield memory._cdata, memory


_WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
_COPYING = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}


def _waits(func: Any, args: Any) -> bool:
    if func not in _INDEXING:
        return not _WAITING.isdisjoint(func.tags)
    # Of a mask the host has to know how many are chosen; an index in its own memory it has to copy.
    return any(
        each is not None and (each.dtype in (torch.bool, torch.uint8) or each.device.type != args[0].device.type)
        for each in args[1]
    )
