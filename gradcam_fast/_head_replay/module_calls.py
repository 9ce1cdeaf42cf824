"""Observes and answers the calls of modules in one thread, without a hook and without a change to any module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

__all__ = ["Observer", "observed_calls"]

Observer: TypeAlias = Callable[[nn.Module, Callable[[], Any]], Any]
"""Called in place of each module, with the module and a function that runs it; what it returns is the module's."""

_of_thread = threading.local()
_lock = threading.Lock()
_users = 0
_call = nn.Module.__call__


def _observed_call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    observer: Observer | None = getattr(_of_thread, "observer", None)
    if observer is None:
        return _call(module, *args, **kwargs)
    return observer(module, lambda: _call(module, *args, **kwargs))


@contextmanager
def observed_calls(observer: Observer) -> Iterator[None]:
    """Every call of a module goes through ``observer`` in this thread; in other threads calls are as always.

    ``nn.Module.__call__`` is exchanged while any thread needs it. Hooks would not do: a forward hook can replace what a
    module returned, but not spare the module from running.
    """
    global _users, _call
    previous = getattr(_of_thread, "observer", None)
    with _lock:
        if _users == 0:
            _call = nn.Module.__call__
            nn.Module.__call__ = _observed_call  # type: ignore[method-assign]
        _users += 1
    _of_thread.observer = observer
    try:
        yield
    finally:
        _of_thread.observer = previous
        with _lock:
            _users -= 1
            if _users == 0:
                nn.Module.__call__ = _call  # type: ignore[method-assign]
