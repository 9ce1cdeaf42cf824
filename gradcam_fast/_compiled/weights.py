"""Notices that a model is no longer the one that a graph was made from."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .._model.fingerprint import fingerprint

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ModelWatch"]

_SAMPLE_TYPES = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class ModelWatch:
    """Compares a model with what it was when the watch was made.

    Its modules, modes, hooks and the addresses of its tensors count, and the values of those tensors that a graph has
    taken as constants: their version counters, which every write but one through ``.data`` moves, and of tensors in
    host memory two elements each, which nearly every write through ``.data`` changes (a step of an optimiser, another
    state). Only a few numbers are read, so a comparison takes microseconds.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._fingerprint = fingerprint(model)
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
        samples = [sample for tensor in new for sample in _samples(tensor)]
        self._storages += [tensor.untyped_storage() for tensor in new]
        self._addresses += [tensor.data_ptr() for tensor in new]
        self._versions += [tensor._version for tensor in new]
        self._values += [sample.value for sample in samples]
        self._constants += new
        self._samples += samples

    def changed(self) -> bool:
        """Whether the model differs from what it was."""
        return (
            [tensor._version for tensor in self._constants] != self._versions
            or [tensor.data_ptr() for tensor in self._constants] != self._addresses
            or fingerprint(self._model) != self._fingerprint
            or [sample.value for sample in self._samples] != self._values
        )


def _samples(tensor: Tensor) -> list[ctypes.c_uint64]:
    """The first element and one in the middle, as numbers that read the tensor's memory whenever they are asked."""
    if tensor.device.type != "cpu" or tensor.numel() == 0 or tensor.element_size() not in _SAMPLE_TYPES:
        return []
    kind = _SAMPLE_TYPES[tensor.element_size()]
    middle = sum(size // 2 * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    address = tensor.data_ptr()
    return [kind.from_address(address + place * tensor.element_size()) for place in {0, middle}]  # type: ignore[misc]
