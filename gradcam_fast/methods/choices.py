"""The choices of a method and its smoothing, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.arguments import METHODS as CAM_METHODS
from ..ops.arguments import check_choice
from . import METHODS

__all__ = ["Choices"]

SMOOTHINGS = ("eigen",)


@dataclass(frozen=True)
class Choices:
    """A method, its options and its smoothing; see :class:`gradcam_fast.Explainer` for each.

    Raises:
        TypeError, ValueError: a choice that cannot work, or one that the method does not have.
    """

    method: str = "gradcam"
    smooth: str | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.smooth is not None:
            check_choice("smooth", self.smooth, SMOOTHINGS)
        if self.smooth == "eigen" and self.method not in CAM_METHODS:
            raise ValueError(
                f"smooth='eigen' takes the first component of a weighted sum of channels, which method={self.method!r} "
                f"does not make; choose one of {', '.join(map(repr, CAM_METHODS))}"
            )

    @property
    def only_op(self) -> bool:
        """Whether the op alone makes the heatmaps."""
        return self.method in CAM_METHODS and self.smooth is None
