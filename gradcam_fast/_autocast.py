"""A context without autocast, which can be interrupted at any place."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

__all__ = ["autocast_flags", "set_autocast_flags", "without_autocast"]

_DEVICES = ("cpu", "cuda")


class without_autocast(AbstractContextManager[None]):
    """Context in which operations on a type of device keep their dtypes; ``torch.autocast(device, enabled=False)``.

    PyTorch's own context also counts how many of them this thread is in. An interruption between its steps leaves the
    count too high; autocast then keeps the weights that it has cast, and training goes on with old ones.
    """

    def __init__(self, device_type: str) -> None:
        self._device = device_type
        # Devices without kernels, such as meta, have no autocast.
        available = torch.amp.is_autocast_available(device_type)
        self._was_enabled = available and torch.is_autocast_enabled(device_type)

    def __enter__(self) -> None:
        if self._was_enabled:
            torch.set_autocast_enabled(self._device, False)

    def __exit__(self, *_: object) -> None:
        if self._was_enabled:
            torch.set_autocast_enabled(self._device, True)


def autocast_flags() -> tuple[bool, ...]:
    """Whether autocast is on in this thread, by type of device."""
    return tuple(torch.is_autocast_enabled(device) for device in _DEVICES)


def set_autocast_flags(flags: tuple[bool, ...]) -> None:
    """Make autocast as `autocast_flags` found it."""
    for device, enabled in zip(_DEVICES, flags, strict=True):
        torch.set_autocast_enabled(device, enabled)
