"""Models compiled by ``torch.compile``, wholly or in part: their eager modules, and running these.

A compiled region does not look for hooks that were put on after it was compiled. Knows nothing of what hooks do.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WRAPPER = "_orig_mod"

_lock = threading.Lock()
_running = 0
_stance: Any = None


def eager_module(module: Any) -> Any:
    """The module inside a ``torch.compile`` wrapper, or the module itself."""
    return getattr(module, _WRAPPER, module)


def eager_name(name: str) -> str:
    """A dotted name without the wrappers of compiled parts: ``features._orig_mod.3`` is ``features.3``."""
    return ".".join(part for part in name.split(".") if part != _WRAPPER)


@contextmanager
def force_eager() -> Iterator[None]:
    """Run everything eagerly inside, however it was compiled.

    PyTorch has one such switch for the whole process: what other threads compiled runs eagerly meanwhile too, with the
    same results. The first to enter turns it, the last to leave turns it back.
    """
    global _running, _stance
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        yield
        return
    with _lock:
        if _running == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                _stance.__exit__(None, None, None)
