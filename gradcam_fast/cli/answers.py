"""What passes through the pipeline: a photo ready for the network, and what the network said of it.

Everything is on the host. Knows nothing of how it is had, drawn or kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Answer", "Question", "Subject", "shown"]


@dataclass(frozen=True)
class Question:
    """What is asked about every photo: which classes, where in the network, by which method.

    Attributes:
        target: the number of one class, or None.
        topk: how many of the most probable classes, or None.
        layer: dotted name of the target layer, or None to find it.
        method: as in :func:`gradcam_fast.explain`.
    """

    target: int | None = None
    topk: int | None = None
    layer: str | None = None
    method: str = "gradcam"


@dataclass(frozen=True)
class Subject:
    """A photo that was read.

    Attributes:
        path: its file.
        name: where its pictures go, below the output folder and without suffix.
        size: (width, height) of the whole photo.
        box: (left, top, right, bottom) of the part that the network sees, in pixels of the photo.
        pixels: that part, (H,W,3) uint8 RGB, perhaps made smaller; None if no picture is asked for.
        input: (1,3,h,w), for the network.
    """

    path: Path
    name: str
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    pixels: NDArray[Any] | None
    input: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """Of one photo, K classes and their maps.

    Attributes:
        classes, names, probabilities, scores: of the classes explained, K each; scores are logits. The
            probability is NaN where the network has one output: nobody says what it means.
        maps: (K,h,w) float32 in [0,1] at the layer's own resolution, scaled to each map's extremes.
        raw_min, raw_max: these extremes, K each.
        valid: whether each map shows something, K.
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


def shown(probability: float, score: float) -> str:
    """How sure the network is, as people read it: the probability if there is one, else the score."""
    return f"score {score:.4g}" if math.isnan(probability) else f"{100 * probability:.1f} %"
