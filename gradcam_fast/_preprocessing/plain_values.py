"""The steps of a preprocessing as plain values, which JSON can hold, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from . import steps

__all__ = ["as_plain_values", "from_plain_values"]

_KINDS = {
    kind.__name__: kind
    for kind in (
        steps.Resize,
        steps.Window,
        steps.Margins,
        steps.Gray,
        steps.exactly,
        steps.cover,
        steps.within,
        steps.shortest,
        steps.longest,
    )
}


def as_plain_values(value: Any) -> Any:
    """A step, or a value in one: dictionaries with the name of each kind, lists and numbers.

    Example:
        >>> as_plain_values(steps.Gray())
        {'kind': 'Gray', 'channels': 1}
    """
    if is_dataclass(value):
        values = {field.name: as_plain_values(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **values}
    return list(value) if isinstance(value, tuple) else value


def from_plain_values(value: Any) -> Any:
    """The step that the plain values describe.

    Raises:
        ValueError: an unknown kind of step, or a value out of its range.
        TypeError: a step of another version, with other values.
    """
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"the preprocessing has a step {kind!r}, which is not known here; use a newer gradcam_fast")
    return _KINDS[kind](**{name: from_plain_values(part) for name, part in value.items() if name != "kind"})
