"""The hooks of an explanation on a model's modules: for one call in one thread, and never part of a copy of the model.

They are put into PyTorch's dictionaries of hooks directly. ``register_forward_hook`` would number them as it numbers
all hooks, and an explanation in another thread could not tell them from hooks on its own graph.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import nn

from .undo import undo_at_end

__all__ = ["OwnHooks", "foreign_hooks"]


# The hooks of the innermost explanation that runs in this thread.
_local = threading.local()


class OwnHooks:
    """Context in which an explanation adds hooks to modules; all of them are removed at its end.

    The hooks run only in the thread that made this object, and not within a further explanation that a hook of the
    model makes.
    """

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()
        self._outer: OwnHooks | None = None
        self._runs_inside = 0
        self._added: list[tuple[OrderedDict[Any, Any], _OwnHook]] = []

    def add(
        self, module: nn.Module, function: Callable[..., Any], *, first: bool = False, before: bool = False
    ) -> None:
        """Add a forward hook: behind the module's other hooks or ``first``; with ``before``, a forward pre-hook."""
        hooks: OrderedDict[Any, Any] = module._forward_pre_hooks if before else module._forward_hooks  # type: ignore
        self._put(hooks, _OwnHook(self, function), first=first)

    def ignore_inner_runs(self, model: nn.Module) -> None:
        """Let the hooks ignore runs of the model inside its own run, such as predictions that a hook of it makes."""
        self._put(model._forward_pre_hooks, _OwnHook(self, self._enter, in_inner_runs=True), first=True)
        self._put(model._forward_hooks, _OwnHook(self, self._leave, in_inner_runs=True))

    def _enter(self, *_: Any) -> None:
        self._runs_inside += 1

    def _leave(self, *_: Any) -> None:
        self._runs_inside -= 1

    def are_active(self, *, in_inner_runs: bool) -> bool:
        """Whether the hooks do anything here and now."""
        if threading.get_ident() != self.thread or _local.innermost is not self:
            return False
        return in_inner_runs or self._runs_inside <= 1

    def _put(self, hooks: Any, hook: _OwnHook, *, first: bool = False) -> None:
        self._added.append((hooks, hook))
        hooks[hook] = hook
        _hide_from_copies(hooks)
        if first:
            hooks.move_to_end(hook, last=False)

    def __enter__(self) -> OwnHooks:
        undo_at_end(self.remove)
        self._outer = getattr(_local, "innermost", None)
        _local.innermost = self
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove all hooks that were added."""
        self.thread = None
        while self._added:
            hooks, hook = self._added[-1]
            hooks.pop(hook, None)
            _show_to_copies(hooks)
            # Forgotten, so that no cycle keeps what the hooks hold until the garbage collector comes.
            self._added.pop()
        if getattr(_local, "innermost", None) is self:
            _local.innermost = self._outer


def foreign_hooks(hooks: Mapping[Any, Any]) -> bool:
    """Whether any of a module's hooks is not of an explanation, in this thread or another."""
    return bool(hooks) and not all(isinstance(key, _OwnHook) for key in list(hooks))


class _OwnHook:
    """A hook that does nothing in other threads, after its call, and in copies of the module; also its own key."""

    def __init__(self, owner: OwnHooks, function: Callable[..., Any], *, in_inner_runs: bool = False) -> None:
        self.owner, self.function, self.in_inner_runs = owner, function, in_inner_runs

    def __call__(self, *args: Any) -> Any:
        return self.function(*args) if self.owner.are_active(in_inner_runs=self.in_inner_runs) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _do_nothing

    def __reduce__(self) -> Any:
        # Takes any arguments, and a process that loads the model needs nothing of this package.
        return getattr, (nullcontext(), "__exit__")


_do_nothing = nullcontext().__exit__


def _hide_from_copies(hooks: OrderedDict[Any, Any]) -> None:
    """Make ``copy.deepcopy`` and ``pickle`` leave the hooks of explanations out."""
    # Both look for these methods on the object before they look at its class.
    vars(hooks).update(__deepcopy__=partial(_deepcopy, hooks), __reduce_ex__=partial(_reduce_ex, hooks))


def _show_to_copies(hooks: OrderedDict[Any, Any]) -> None:
    if not any(isinstance(key, _OwnHook) for key in list(hooks)):
        vars(hooks).pop("__deepcopy__", None)
        vars(hooks).pop("__reduce_ex__", None)
        # Another thread may have added a hook in between.
        if any(isinstance(key, _OwnHook) for key in list(hooks)):
            _hide_from_copies(hooks)


def _foreign(hooks: OrderedDict[Any, Any]) -> OrderedDict[Any, Any]:
    return OrderedDict((key, hook) for key, hook in list(hooks.items()) if not isinstance(key, _OwnHook))


def _deepcopy(hooks: OrderedDict[Any, Any], memo: dict[int, Any]) -> OrderedDict[Any, Any]:
    return copy.deepcopy(_foreign(hooks), memo)


def _reduce_ex(hooks: OrderedDict[Any, Any], protocol: Any) -> Any:
    return _foreign(hooks).__reduce_ex__(protocol)
