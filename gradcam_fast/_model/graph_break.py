"""Functions that code under ``torch.compile`` may call, and that themselves run as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.compiler import is_compiling

__all__ = ["runs_eagerly"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_REASON = (
    "gradcam_fast runs hooks and a backward, which torch.compile does not trace: leave fullgraph=True out, or compile "
    "prediction and explanation together with gradcam_fast.Explainer(model).compile(images)"
)


def runs_eagerly(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let ``torch.compile`` break its graph at calls of the function, instead of tracing into it.

    ``torch.compiler.disable`` does the same, but imports the compiler at once, which takes a second.
    """
    disabled: list[Callable[_P, _R]] = []

    def outside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    # While torch.compile traces a caller, it does not trace a function with this attribute; torch.compiler.disable sets
    # it, too. Outside of the trace it is only code like any other, so that the function inside has to be disabled.
    outside._torchdynamo_disable = True  # type: ignore[attr-defined]
    outside._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return outside(*args, **kwargs) if is_compiling() else function(*args, **kwargs)

    return run
