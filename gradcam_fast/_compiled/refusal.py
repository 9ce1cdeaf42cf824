"""Why an explanation cannot be traced: the operation, and the line of the model that it came from."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path

import torch

__all__ = ["in_line_of_model", "reason_of"]

_OURS = str(Path(__file__).parents[1])
_PYTORCH = str(Path(torch.__file__).parent)

# What PyTorch's errors mean, by words in them.
_MEANINGS = (
    ("data-dependent", "the values of a tensor decide what the model does next (if, int(), item(), tolist())"),
    ("data dependent", "the values of a tensor decide what the model does next (if, int(), item(), tolist())"),
    ("dynamic_output_shape", "the values of a tensor decide the shape of another (nonzero, a boolean mask)"),
    ("DynamicOutputShape", "the values of a tensor decide the shape of another (nonzero, a boolean mask)"),
    ("numpy", "a tensor leaves PyTorch (numpy())"),
)


def reason_of(error: BaseException) -> str:
    """The reason for an error in a trace, as part of a sentence."""
    kind, message = type(error).__name__, str(error).strip().partition("\n")[0]
    operation = getattr(error, "func", None)
    meaning = next((meaning for word, meaning in _MEANINGS if word.lower() in f"{kind} {message}".lower()), None)
    what = f"{meaning}; " if meaning else ""
    named = f"{operation}: " if operation is not None else ""
    return f"{what}{named}{kind}: {message}{_at_line_of_model(error)}"


def _at_line_of_model(error: BaseException) -> str:
    """The innermost line that is neither of PyTorch nor of this package: that of the model, or of a callable target."""
    lines = [
        in_line_of_model(frame.f_code.co_filename, number, frame.f_code.co_name)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    return next(filter(None, reversed(lines)), "")


def in_line_of_model(file: str, number: int | None, function: str) -> str:
    """A line as words in brackets; nothing for one of PyTorch or of this package."""
    if number is None or file.startswith((_OURS, _PYTORCH, "<")):
        return ""
    return f" (in {function}, {file}:{number}: {linecache.getline(file, number).strip()})"
