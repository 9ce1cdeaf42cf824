"""The tensors inside what models and layers return: a tensor, or a tuple, list, dict or dataclass of tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "all_tensors",
    "detach_tensors",
    "feature_tensor",
    "map_tensors",
    "replace_tensor",
    "slice_batch",
    "tensors_in",
]


def tensors_in(output: Any) -> list[Tensor]:
    """The tensor itself, or the tensors directly in a tuple, list or dict."""
    members = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [member for member in (output, *members) if isinstance(member, torch.Tensor)]


def feature_tensor(output: Any) -> Tensor | None:
    """The feature maps in a layer's output: its first floating tensor, or None."""
    return next((tensor for tensor in tensors_in(output) if tensor.dtype.is_floating_point), None)


def all_tensors(output: Any) -> list[Tensor]:
    """Every tensor in ``output``, however deep, in the order of its containers."""
    tensors: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(output, add)
    return tensors


def replace_tensor(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with ``old`` replaced by ``new``, in the same type of container."""
    if output is old:
        return new
    if isinstance(output, MutableMapping):
        replaced = copy.copy(output)
        for key, value in output.items():
            if value is old:
                replaced[key] = new
        return replaced
    members = [new if member is old else member for member in output]
    return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)


def slice_batch(output: Any, start: int, end: int, total: int) -> Any:
    """The part of ``output`` that is of the images from ``start`` to ``end`` of a batch of ``total``.

    That are these entries of each tensor with ``total`` of them, and of a list of ``total`` dicts, one for each image.
    """
    if isinstance(output, list) and len(output) == total and all(isinstance(entry, Mapping) for entry in output):
        return output[start:end]
    return map_tensors(output, lambda tensor: tensor[start:end] if tensor.dim() and len(tensor) == total else tensor)


def map_tensors(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``output`` with every tensor ``t`` in it, however deep, replaced by ``function(t)``, in the same containers."""
    if isinstance(output, torch.Tensor):
        return function(output)
    if isinstance(output, MutableMapping):
        mapped = copy.copy(output)
        for key, value in output.items():
            mapped[key] = map_tensors(value, function)
        return mapped
    if isinstance(output, (tuple, list)):
        members = [map_tensors(value, function) for value in output]
        return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)
    if hasattr(output, "__dict__"):
        mapped = copy.copy(output)
        vars(mapped).update({k: function(v) for k, v in vars(output).items() if isinstance(v, torch.Tensor)})
        return mapped
    return output


def detach_tensors(output: Any) -> Any:
    """``output`` with every tensor in it detached, in the same containers."""
    return map_tensors(output, torch.Tensor.detach)
