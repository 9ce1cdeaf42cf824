"""The data of a run over photos: a photo ready for the network, and its results; all on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from ..exceptions import PhotoError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["NO_MAPS", "LoadedPhoto", "PhotoResult", "refuse_non_finite"]


@dataclass(frozen=True)
class LoadedPhoto:
    """A photo that was read.

    Attributes:
        path: its file; text where it is the address of a remote one.
        name: path of its pictures, in the output folder and without suffix.
        size: (width, height) of the whole photo.
        box: (left, top, right, bottom) of the part that the network sees, in pixels of the photo.
        pixels: this part as (H,W,3) uint8 RGB, possibly made smaller; None if no picture is drawn.
        input: (1,3,h,w), the network's input.
    """

    path: Path | str
    name: str
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    pixels: NDArray[Any] | None
    input: Tensor | None = None


@dataclass(frozen=True)
class PhotoResult:
    """The explained classes of one photo, and their K maps.

    Attributes:
        classes, names, probabilities, scores: of the classes explained, K each; scores are the network's outputs. The
            probability is NaN where it is not known (:mod:`gradcam_fast.probabilities`).
        maps: (K,h,w) float32 in [0,1] at the layer's own resolution, each scaled to its own extremes.
        raw_min, raw_max: the extremes before scaling, K each.
        valid: whether each map is finite and not flat, K.
        layer: dotted name of the layer.
        best: (name, class, probability, score) of the classes with the highest outputs, best first.
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
    best: tuple[tuple[str, int, float, float], ...] = ()


# What is known of a photo that was not explained.
NO_MAPS = PhotoResult((), (), (), (), numpy.zeros((0, 0, 0), numpy.float32), (), (), (), "")


def refuse_non_finite(photo: LoadedPhoto, result: PhotoResult) -> None:
    """Refuse the result of a photo whose scores are not numbers.

    Raises:
        PhotoError: a score is NaN or infinite.
    """
    if not all(map(math.isfinite, result.scores)):
        raise PhotoError(
            f"{photo.path}: the network returns {result.scores[0]} for it; check the weights, or give --dtype float32"
        )
