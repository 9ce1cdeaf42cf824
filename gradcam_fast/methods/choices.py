"""The choices of a method and its smoothing, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..ops.arguments import METHODS as CAM_METHODS
from ..ops.arguments import check_choice, is_integer
from . import METHODS

__all__ = ["Choices", "Progress"]

Progress: TypeAlias = Callable[[int, int], object] | bool
"""A callable that is told how many of how many runs are done; True shows them on standard error."""

SMOOTHINGS = ("augment", "eigen", "noise")
# Methods of this room that take gradients, and those that one graph computes.
_WITH_GRADIENTS = ("eigengradcam",)
_IN_ONE_GRAPH = ("eigencam", "eigengradcam")


@dataclass(frozen=True)
class Choices:
    """A method, its options and its smoothing; see :class:`gradcam_fast.Explainer` for each.

    Raises:
        TypeError, ValueError: a choice that cannot work, or one that the method or smoothing does not have.
    """

    method: str = "gradcam"
    smooth: str | Sequence[str] | None = None
    channels: int | None = None
    chunk: int | None = None
    progress: Progress = False
    samples: int | None = None
    sigma: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        self._check_smooth()
        self._check_noise()
        if self.channels is not None:
            _check_count("channels", self.channels)
            if self.method != "scorecam":
                raise ValueError(f"channels= is for method='scorecam', not for method={self.method!r}; leave it out")
        if self.chunk is not None:
            _check_count("chunk", self.chunk)
        if not callable(self.progress) and not isinstance(self.progress, bool):
            raise TypeError(
                f"progress={self.progress!r} is a {type(self.progress).__name__}; give a callable that takes the "
                "numbers of runs done and of all runs, or True for standard error"
            )

    @property
    def smoothings(self) -> tuple[str, ...]:
        """The names of all smoothings asked for."""
        return () if self.smooth is None else (self.smooth,) if isinstance(self.smooth, str) else tuple(self.smooth)

    def copies_at_once(self, device: torch.device, *, on_cpu: int = 16, elsewhere: int = 64) -> int:
        """How many changed copies of images run at once: ``chunk``, or what is fast on this kind of device."""
        # On a CPU the maps of a few images stay in its caches.
        return self.chunk if self.chunk is not None else on_cpu if device.type == "cpu" else elsewhere

    @property
    def only_op(self) -> bool:
        """Whether the op alone makes the heatmaps, of one capture."""
        return self.method in CAM_METHODS and not self.smooth

    @property
    def traces(self) -> bool:
        """Whether one graph computes the heatmaps: the model runs once, and no value decides what is done next."""
        return self.method in (*CAM_METHODS, *_IN_ONE_GRAPH) and set(self.smoothings) <= {"eigen"}

    def _check_smooth(self) -> None:
        if not isinstance(self.smooth, (str, tuple, list, type(None))):
            raise TypeError(
                f"smooth={self.smooth!r} is a {type(self.smooth).__name__}; give one of "
                f"{', '.join(map(repr, SMOOTHINGS))}, a tuple of them, or None"
            )
        for smoothing in self.smoothings:
            check_choice("smooth", smoothing, SMOOTHINGS)
        if "eigen" in self.smoothings and self.method not in CAM_METHODS:
            raise ValueError(
                f"smooth='eigen' takes the first component of a weighted sum of channels, which method={self.method!r} "
                f"does not make; choose one of {', '.join(map(repr, CAM_METHODS))}"
            )
        if "noise" in self.smoothings and self.method not in (*CAM_METHODS, *_WITH_GRADIENTS):
            raise ValueError(
                f"smooth='noise' averages gradients, which method={self.method!r} does not take; choose one of "
                f"{', '.join(map(repr, (*CAM_METHODS, *_WITH_GRADIENTS)))}, or smooth='augment'"
            )

    def _check_noise(self) -> None:
        for name in ("samples", "sigma", "seed"):
            if getattr(self, name) is not None and "noise" not in self.smoothings:
                raise ValueError(f"{name}= is for smooth='noise', not for smooth={self.smooth!r}; leave it out")
        if self.samples is not None:
            _check_count("samples", self.samples)
        if self.seed is not None:
            _check_count("seed", self.seed, least=0)
        if self.sigma is not None:
            if not isinstance(self.sigma, (int, float)) or isinstance(self.sigma, bool):
                raise TypeError(
                    f"sigma={self.sigma!r} is a {type(self.sigma).__name__}; give a share of each image's range, such "
                    "as 0.15"
                )
            if not 0 < self.sigma < math.inf:
                raise ValueError(
                    f"sigma={self.sigma} is no deviation; give a share of each image's range, such as 0.15"
                )


def _check_count(name: str, count: object, least: int = 1) -> None:
    if not is_integer(count):
        raise TypeError(f"{name}={count!r} is a {type(count).__name__}; give an integer of at least {least}")
    if count < least:  # type: ignore[operator]
        raise ValueError(f"{name}={count} is below {least}; give an integer of at least {least}")
