"""What a trial run saves for its backward, once: a map, or the copy of it that is handed onward, but not both."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SavedOnce"]


class SavedOnce:
    """Inside its hooks, an operation that would save the unchanged copy of maps saves the maps, if these are saved.

    A ReLU saves its result, and a convolution behind saves what it takes: without this, both the result and the copy.
    """

    def __init__(self) -> None:
        # By the address of the memory. Held weakly: the graph keeps what it needs, and addresses are used again.
        self._saved: dict[int | None, weakref.ref[Tensor]] = {}
        self._copies: dict[int | None, tuple[weakref.ref[Tensor], weakref.ref[Tensor]]] = {}

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self._save, _unchanged)

    def copied(self, maps: Tensor, copy: Tensor) -> None:
        """Note that ``copy`` has the values of ``maps``."""
        saved = self._saved.get(_address(maps))
        if saved is not None and (copy.stride(), copy.storage_offset()) == (maps.stride(), maps.storage_offset()):
            self._copies[_address(copy)] = weakref.ref(copy), saved

    def _save(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address is None:
            return tensor.detach()
        copy, saved = (known() for known in self._copies.get(address, (_nothing, _nothing)))
        if copy is not None and saved is not None and copy._version == 0 and saved.dtype == tensor.dtype:
            tensor = saved.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        else:
            tensor = tensor.detach()  # its graph would hold itself
        self._saved[_address(tensor)] = weakref.ref(tensor)
        return tensor


def _address(tensor: Tensor) -> int | None:
    """Where the values lie; None of a tensor that has no memory of its own: sparse, nested, or under a transform."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _nothing() -> None:
    return None
