"""Observes and answers the calls of modules in one thread, without a hook and without a change to any module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

from .._model.undo import Lock, undo_at_end

__all__ = ["Observer", "observed_calls"]

Observer: TypeAlias = Callable[[nn.Module, Callable[[], Any]], Any]
"""Called in place of each module, with the module and a function that runs it; what it returns is the module's."""

_of_thread = threading.local()
_lock = Lock()
# One object for each run inside `observed_calls`.
_users: set[object] = set()
# What nn.Module.__call__ was when it was exchanged last, and whether it is exchanged now.
_call = nn.Module.__call__
_is_exchanged = False


def _observed_call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    _, observer = _observing()
    if observer is None:
        return _call(module, *args, **kwargs)
    return observer(module, lambda: _call(module, *args, **kwargs))


def _observing() -> tuple[object, Observer | None]:
    """The user whose observer this thread's calls go through, and the observer; None and None without one."""
    of_thread: tuple[object, Observer | None] = getattr(_of_thread, "observing", (None, None))
    return of_thread


@contextmanager
def observed_calls(observer: Observer) -> Iterator[None]:
    """Every call of a module goes through ``observer`` in this thread; in other threads calls are as always.

    ``nn.Module.__call__`` is exchanged while any thread needs it. Hooks would not do: a forward hook can replace what a
    module returned, but not spare the module from running.
    """
    previous = _observing()
    user = object()

    # Kept until the explanation ends, so it must not hold the observer: that has the activations of its run.
    def leave() -> None:
        if _observing()[0] is user:
            _of_thread.observing = previous
        _users.discard(user)
        _exchange()

    try:
        undo_at_end(leave)
        _users.add(user)
        _exchange()
        _of_thread.observing = user, observer
        yield
    finally:
        leave()


def _exchange() -> None:
    """Exchange ``nn.Module.__call__`` if there are users, or put it back."""
    global _call, _is_exchanged
    try:
        _lock.acquire()
        if _users and not _is_exchanged:
            _call = nn.Module.__call__
            _is_exchanged = True
            nn.Module.__call__ = _observed_call  # type: ignore[method-assign]
        # If someone else has exchanged it meanwhile, what they put there may call ours, which stays.
        elif not _users and _is_exchanged and nn.Module.__call__ in (_observed_call, _call):
            nn.Module.__call__ = _call  # type: ignore[method-assign]
            _is_exchanged = False
    finally:
        _lock.release()
