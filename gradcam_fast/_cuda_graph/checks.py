"""Checks before an explanation is recorded: modes and hooks of the model, then a dry run of every operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._model.fingerprint import needs_its_code_because

__all__ = ["CannotRecord", "dry_run", "unrecordable_because"]

# Operations whose result the host must wait for: its values decide what is returned, or its shape.
_SYNC_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
# Operations that may copy between devices, and the position of the argument that they copy.
_COPY_SOURCES = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}


class CannotRecord(Exception):
    """The function runs an operation that a CUDA graph cannot record.

    Not a RuntimeError: the batched backward catches RuntimeErrors, and then computes one target at a time.
    """


def unrecordable_because(model: nn.Module, device: torch.device) -> str | None:
    """Why the model cannot be replayed without its Python code; None if no reason is known."""
    reason = needs_its_code_because(model)
    if reason is not None:
        return reason
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device not in (device, torch.device("cpu")):
            return f"the model is partly on {tensor.device}, and the images are on {device}"
    return None


def dry_run(function: Callable[[], Any], device: torch.device) -> list[torch.UntypedStorage]:
    """Run ``function``, and return the storages it reads but did not create.

    A CUDA graph cannot record a host sync (the host waits for a result), and would silently freeze a copy from the
    host (its memory may be gone at the replay): both are rejected. A few are missed: the copy in
    ``torch.tensor(numbers, device=...)``, for example, makes only the capture itself fail.

    Raises:
        CannotRecord: the host waits for the device, or data is copied between host and device.
    """
    with _DryRun(device.type) as mode:
        function()
    return list(mode.storages_read.values())


class _DryRun(TorchDispatchMode):
    """Checks every operation, also those of the backward."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.storages_read: dict[int, torch.UntypedStorage] = {}
        self.created: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = args and isinstance(args[0], torch.Tensor) and args[0].device.type == self.device_type
        if on_device and _needs_host_sync(func, args):
            raise CannotRecord(f"{func} makes the host wait for the device")
        self.storages_read.update((key, storage) for key, storage in _storages(args, kwargs) if key not in self.created)
        result = func(*args, **kwargs)
        self.created.update(key for key, _ in _storages(result) if key not in self.storages_read)
        if func in _COPY_SOURCES:
            source = args[_COPY_SOURCES[func]]
            if source.device.type != result.device.type:
                raise CannotRecord(f"{func} copies from {source.device} to {result.device} in every run")
        return result


def _storages(*values: Any) -> Iterator[tuple[int, torch.UntypedStorage]]:
    """The storages of all tensors in ``values``, with their identity."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            storage = leaf.untyped_storage()
            yield storage._cdata, storage


def _needs_host_sync(func: Any, args: Any) -> bool:
    if func not in _INDEXING:
        return not _SYNC_TAGS.isdisjoint(func.tags)
    # For a mask, the host must know how many elements it selects; an index in host memory is copied to the device.
    return any(
        index is not None and (index.dtype in (torch.bool, torch.uint8) or index.device.type != args[0].device.type)
        for index in args[1]
    )
