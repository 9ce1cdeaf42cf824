"""Notices that a model is no longer the one that a graph was made from."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from .._model.fingerprint import fingerprint

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ModelWatch"]

_SAMPLE_TYPES = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}

_MODE_AND_TABLES = itemgetter("training", "_parameters", "_buffers", "_modules")
_version, _address, _value = attrgetter("_version"), torch.Tensor.data_ptr, attrgetter("value")


class ModelWatch:
    """Compares a model with what it was when the watch was made.

    Its modules, modes, hooks and tensors count, and the values of those tensors that a graph has taken as constants:
    their version counters, which every write but one through ``.data`` moves, and of tensors in host memory one element
    each, which nearly every write through ``.data`` changes (a step of an optimiser, another state).

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._structure = _Structure(model)
        self._constants: list[Tensor] = []
        self._versions: list[int] = []
        self._addresses: list[int] = []
        # Kept, so that their memory can be read also after another one has taken its place in a tensor, and no other
        # tensor gets their address.
        self._storages: list[torch.UntypedStorage] = []
        self._samples: list[ctypes.c_uint64] = []
        self._values: list[int] = []

    def add_constants(self, tensors: Iterable[Tensor]) -> None:
        """Watch the values of these tensors, too."""
        known = set(map(id, self._constants))
        new = [tensor for tensor in tensors if id(tensor) not in known and not tensor.is_inference()]
        samples = [sample for tensor in new if (sample := _sample(tensor)) is not None]
        self._storages += [tensor.untyped_storage() for tensor in new]
        self._addresses += map(_address, new)
        self._versions += map(_version, new)
        self._values += map(_value, samples)
        self._constants += new
        self._samples += samples

    def changed(self) -> bool:
        """Whether the model differs from what it was."""
        return (
            list(map(_version, self._constants)) != self._versions
            or list(map(_address, self._constants)) != self._addresses
            or self._structure.changed()
            or list(map(_value, self._samples)) != self._values
        )


class _Structure:
    """Tells whether a model's modules, modes, hooks or tensors are others than before.

    Asked at every call, with the caches full of the network's data: so it reads few objects, and asks for the whole
    fingerprint only if one of them differs or a hook was registered anywhere in the process.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._fingerprint = model, fingerprint(model)
        self._attributes = [vars(module) for module in model.modules() if "training" in vars(module)]
        self._modes_and_tables = self._read_modes_and_tables()
        # A first tensor counts for nothing, because it needs other code to be used; a first child does not.
        self._tables = [
            table
            for _, parameters, buffers, children in map(_MODE_AND_TABLES, self._attributes)
            for table in (parameters, buffers, children)
            if table or table is children
        ]
        self._kept_alive = self._entries()  # so that no other object gets the place of one in memory
        self._places = list(map(id, self._kept_alive))
        self._hooks_registered = RemovableHandle.next_id

    def changed(self) -> bool:
        if self._looks_the_same():
            return False
        hooks_registered = RemovableHandle.next_id
        if fingerprint(self._model) != self._fingerprint:
            return True
        self._hooks_registered = hooks_registered
        return False

    def _looks_the_same(self) -> bool:
        return (
            RemovableHandle.next_id == self._hooks_registered
            and all(map(is_, self._read_modes_and_tables(), self._modes_and_tables))
            and list(map(id, self._entries())) == self._places
        )

    def _read_modes_and_tables(self) -> list[Any]:
        return list(chain.from_iterable(map(_MODE_AND_TABLES, self._attributes)))

    def _entries(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._tables)))


def _sample(tensor: Tensor) -> ctypes.c_uint64 | None:
    """An element in the middle, as a number that reads the tensor's memory whenever its value is asked for."""
    if tensor.device.type != "cpu" or tensor.numel() == 0 or tensor.element_size() not in _SAMPLE_TYPES:
        return None
    kind = _SAMPLE_TYPES[tensor.element_size()]
    middle = sum(size // 2 * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return kind.from_address(tensor.data_ptr() + middle * tensor.element_size())  # type: ignore[return-value]
