"""Which callables are the same target: many callers make theirs anew for every call."""

from __future__ import annotations

from functools import partial
from types import FunctionType, MethodType
from typing import Any

__all__ = ["callable_key"]

_PLAIN = (type(None), bool, int, float, str, bytes)


def callable_key(function: Any) -> Any:
    """A key that is equal for callables of the same code that refer to the same values.

    Example:
        >>> def score_of(number):
        ...     return lambda logits: logits[:, number]
        >>> callable_key(score_of(1)) == callable_key(score_of(1))
        True
        >>> callable_key(score_of(1)) == callable_key(score_of(2))
        False
    """
    if isinstance(function, partial):
        arguments = tuple(map(_value_key, function.args))
        return "partial", callable_key(function.func), arguments, _named_keys(function.keywords)
    if isinstance(function, MethodType):
        return "method", callable_key(function.__func__), _SameObject(function.__self__)
    if isinstance(function, FunctionType):
        cells = tuple(_value_key(cell.cell_contents) for cell in function.__closure__ or ())
        defaults = tuple(map(_value_key, function.__defaults__ or ()))
        return "function", function.__code__, cells, defaults, _named_keys(function.__kwdefaults__ or {})
    return _SameObject(function)


def _named_keys(values: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _value_key(value)) for name, value in sorted(values.items()))


def _value_key(value: Any) -> Any:
    if type(value) in _PLAIN:
        return type(value), value
    if type(value) is tuple:
        return tuple(map(_value_key, value))
    if callable(value) and isinstance(value, (FunctionType, MethodType, partial)):
        return callable_key(value)
    return _SameObject(value)


class _SameObject:
    """Equal if it is of the same object, which it keeps alive, so that no other object takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameObject) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
