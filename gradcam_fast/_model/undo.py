"""Undoes what a call changes for its duration, at whatever place an interruption ends the call.

Ctrl-C may arrive between any two steps of the interpreter, also inside a ``finally`` block or an ``__exit__`` method.
So everything is undone at two levels: where it was done, and again where the public call ends. Each undo may therefore
run twice, and must do nothing the second time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakSet, ref

import torch

from .._autocast import autocast_flags, set_autocast_flags

__all__ = ["Lock", "leaves_no_trace", "outside_inference_mode", "undo_at_end"]

_F = TypeVar("_F", bound=Callable[..., Any])

_local = threading.local()
# The calls that are running, in all threads. Only the frame of a call keeps it alive, so that none stays behind.
_running: WeakSet[_Call] = WeakSet()


def _no_call() -> None:
    return None


class _Call:
    """A public call that is running, with what it has to undo."""

    def __init__(self) -> None:
        self.outer = getattr(_local, "call", _no_call)
        self.thread = threading.get_ident()
        self.grad_enabled = torch.is_grad_enabled()
        self.autocast = autocast_flags()
        self.undos: list[Callable[[], None]] = []

    def end(self) -> None:
        try:
            self._end()
        except BaseException:
            # Interrupted in the second level itself, perhaps with a lock in hand: once more.
            self._end()
            raise

    def _end(self) -> None:
        self.undo()
        if torch.is_grad_enabled() != self.grad_enabled:
            torch.set_grad_enabled(self.grad_enabled)
        if autocast_flags() != self.autocast:
            set_autocast_flags(self.autocast)
        _running.discard(self)
        _local.call = self.outer

    def undo(self) -> None:
        for undo in reversed(self.undos):
            undo()
        self.undos.clear()


def leaves_no_trace(function: _F) -> _F:
    """Let a public function undo what ``undo_at_end`` names, and restore grad mode and autocast, however it ends."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        current = _Call()
        try:
            _running.add(current)
            _local.call = ref(current)
            return function(*args, **kwargs)
        finally:
            current.end()

    return call  # type: ignore[return-value]


def undo_at_end(undo: Callable[[], None]) -> None:
    """Run ``undo`` when the public call in this thread ends, and in a child process that is forked meanwhile.

    The caller runs it, too, where the change should end.
    """
    current = getattr(_local, "call", _no_call)()
    if current is not None:
        current.undos.append(undo)


class outside_inference_mode:
    """Context outside inference mode, with gradients on; ``torch.inference_mode(False)`` that can be interrupted."""

    def __init__(self) -> None:
        self._guard: Any = None

    def __enter__(self) -> None:
        undo_at_end(self._leave)
        self._guard = torch._C._InferenceMode(False)  # made, it is entered

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._guard is not None:
            self._guard.__exit__(None, None, None)  # the second time it does nothing


_locks: WeakSet[Lock] = WeakSet()


class Lock:
    """A lock that a thread may release twice, because it can tell whether it holds it; free in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def is_held(self) -> bool:
        """Whether this thread holds the lock."""
        return self._lock._is_owned()  # type: ignore[attr-defined]

    def acquire(self) -> None:
        """Wait for the lock, unless this thread holds it."""
        if not self.is_held():
            self._lock.acquire()

    def release(self) -> None:
        """Release the lock, if this thread holds it."""
        if self.is_held():
            self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context that holds the lock; within another one of this thread it does nothing."""
        if self.is_held():
            yield
            return
        try:
            undo_at_end(self.release)
            self.acquire()
            yield
        finally:
            self.release()

    def free_in_child(self) -> None:
        """Be a new lock, unless the thread that forked holds the old one."""
        if not self.is_held():
            self._lock = threading.RLock()


def _undo_in_child() -> None:
    # The threads that were explaining do not exist in the child; the forking thread goes on.
    for call in list(_running):
        if call.thread != threading.get_ident():
            call.undo()
            _running.discard(call)


def _free_locks_in_child() -> None:
    for lock in list(_locks):
        lock.free_in_child()


if hasattr(os, "register_at_fork"):
    # The locks first, since undoing takes some of them.
    os.register_at_fork(after_in_child=_free_locks_in_child)
    os.register_at_fork(after_in_child=_undo_in_child)
