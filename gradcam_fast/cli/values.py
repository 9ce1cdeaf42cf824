"""Values of options, from text; what is wrong with one is said in a sentence. Knows nothing of the options."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable

__all__ = ["chosen", "crop", "number", "percent", "positive", "share", "size"]


def positive(text: str) -> int:
    """An integer from 1."""
    return _integer(text, "a whole number from 1", 1, None)


def percent(text: str) -> int:
    """An integer from 1 to 100."""
    return _integer(text, "a whole number from 1 to 100", 1, 100)


def number(text: str) -> float:
    """Any finite number."""
    return _float(text, "a number", float("-inf"), float("inf"))


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _float(text, "a number from 0 to 1", 0, 1)


def crop(text: str) -> float | str | None:
    """A number from 0 to 1, None for ``none``, or ``auto``."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    return _float(text, "a number from 0 to 1, 'auto' or 'none'", 0, 1)


def size(text: str) -> tuple[int, int]:
    """(height, width), from ``224`` or ``224x320``."""
    if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", text)):
        raise ArgumentTypeError(f"{text!r} is no size; give a height in pixels, or height and width as 224x320")
    return int(found[1]), int(found[2] or found[1])


def chosen(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Several of ``choices`` with commas between."""

    def several(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if wrong := [name for name in names if name not in choices]:
            raise ArgumentTypeError(f"{wrong[0]!r} is unknown; choose from {', '.join(choices)}")
        return names

    return several


def _integer(text: str, what: str, low: int, high: int | None) -> int:
    if re.fullmatch(r"[+-]?\d+", text) and low <= int(text) <= (high or int(text)):
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not {what}")


def _float(text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if low <= value <= high and abs(value) < float("inf"):
        return value
    raise ArgumentTypeError(f"{text!r} is not {what}")
