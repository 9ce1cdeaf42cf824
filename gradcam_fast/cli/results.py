"""The data of a run over photos: options, a photo ready for the network, its results; all on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["MAX_PIXELS", "ExplainOptions", "LoadedPhoto", "PhotoError", "PhotoResult", "confidence"]


# The most pixels of a photo, unless said otherwise: more than any camera but a few has.
MAX_PIXELS = 120_000_000


class PhotoError(Exception):
    """One photo cannot be explained, and the others can; the message begins with its path."""


@dataclass(frozen=True)
class ExplainOptions:
    """Which classes of every photo are explained, at which layer, by which method.

    Attributes:
        target: the number of one class, or None.
        topk: how many of the most probable classes, or None.
        layer: dotted name of the target layer, or None to find it automatically.
        method: as in :func:`gradcam_fast.explain`.
    """

    target: int | None = None
    topk: int | None = None
    layer: str | None = None
    method: str = "gradcam"


@dataclass(frozen=True)
class LoadedPhoto:
    """A photo that was read.

    Attributes:
        path: its file.
        name: path of its pictures, in the output folder and without suffix.
        size: (width, height) of the whole photo.
        box: (left, top, right, bottom) of the part that the network sees, in pixels of the photo.
        pixels: this part as (H,W,3) uint8 RGB, possibly made smaller; None if no picture is drawn.
        input: (1,3,h,w), the network's input.
    """

    path: Path
    name: str
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    pixels: NDArray[Any] | None
    input: Tensor | None = None


@dataclass(frozen=True)
class PhotoResult:
    """The explained classes of one photo, and their K maps.

    Attributes:
        classes, names, probabilities, scores: of the classes explained, K each; scores are logits. The probability
            is NaN for a network with one output, because it depends on how the network was trained.
        maps: (K,h,w) float32 in [0,1] at the layer's own resolution, each scaled to its own extremes.
        raw_min, raw_max: the extremes before scaling, K each.
        valid: whether each map is finite and not flat, K.
        layer: dotted name of the layer.
        best: (name, class, probability) of the most probable classes, best first.
    """

    classes: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    scores: tuple[float, ...]
    maps: NDArray[Any]
    raw_min: tuple[float, ...]
    raw_max: tuple[float, ...]
    valid: tuple[bool, ...]
    layer: str
    best: tuple[tuple[str, int, float], ...] = ()


def confidence(probability: float, score: float) -> str:
    """How sure the network is, as text: the probability, or the score if there is no probability.

    Example:
        >>> confidence(0.25, 3.0), confidence(float("nan"), 3.0)
        ('25.0 %', 'score 3')
    """
    return f"score {score:.4g}" if math.isnan(probability) else f"{100 * probability:.1f} %"
