"""Packages that only some of the classes need, imported when they do."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["import_extra"]


def import_extra(module: str, name: str) -> Any:
    """A name of a module of the extra ``compat``.

    Raises:
        ImportError: its package is not installed; the message has the command that installs it.
    """
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module}.{name} is needed here, and {error.name} is not installed; run: "
            "pip install 'gradcam-fast[compat]'",
            name=error.name,
        ) from error
