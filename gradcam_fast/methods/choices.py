"""The choices of a method and its smoothing, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..ops.arguments import METHODS as CAM_METHODS
from ..ops.arguments import check_choice, is_integer
from . import METHODS

__all__ = ["Choices", "Progress"]

Progress: TypeAlias = Callable[[int, int], object] | bool
"""A callable that is told how many of how many runs are done; True shows them on standard error."""

SMOOTHINGS = ("eigen",)


@dataclass(frozen=True)
class Choices:
    """A method, its options and its smoothing; see :class:`gradcam_fast.Explainer` for each.

    Raises:
        TypeError, ValueError: a choice that cannot work, or one that the method does not have.
    """

    method: str = "gradcam"
    smooth: str | None = None
    channels: int | None = None
    chunk: int = 32
    progress: Progress = False

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.smooth is not None:
            check_choice("smooth", self.smooth, SMOOTHINGS)
        if self.smooth == "eigen" and self.method not in CAM_METHODS:
            raise ValueError(
                f"smooth='eigen' takes the first component of a weighted sum of channels, which method={self.method!r} "
                f"does not make; choose one of {', '.join(map(repr, CAM_METHODS))}"
            )

        if self.channels is not None:
            _check_count("channels", self.channels)
            if self.method != "scorecam":
                raise ValueError(f"channels= is for method='scorecam', not for method={self.method!r}; leave it out")
        _check_count("chunk", self.chunk)
        if not callable(self.progress) and not isinstance(self.progress, bool):
            raise TypeError(
                f"progress={self.progress!r} is a {type(self.progress).__name__}; give a callable that takes the "
                "numbers of runs done and of all runs, or True for standard error"
            )

    @property
    def only_op(self) -> bool:
        """Whether the op alone makes the heatmaps."""
        return self.method in CAM_METHODS and self.smooth is None


def _check_count(name: str, count: object) -> None:
    if not is_integer(count):
        raise TypeError(f"{name}={count!r} is a {type(count).__name__}; give an integer of at least 1")
    if count < 1:  # type: ignore[operator]
        raise ValueError(f"{name}={count} is below 1; give an integer of at least 1")
