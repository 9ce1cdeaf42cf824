"""Batches of a video's frames: prepared for a network, and drawn over with what it saw in them.

Knows nothing of files, of threads or of how heatmaps are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy
import torch
from PIL import Image

from ...visual.overlay import overlay

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ...explanation import Explanation
    from ..networks.preprocessing import Preprocessing

__all__ = ["Batch", "Drawing", "Frame", "prepared"]


@dataclass(frozen=True)
class Frame:
    """One upright picture, (H,W,3) uint8 RGB, and its time from the first one, in seconds."""

    picture: NDArray[numpy.uint8]
    time: Fraction


@dataclass(frozen=True)
class Batch:
    """Frames of one size, as (B,3,h,w) float32 input of a network, and which part of them, in pixels, that shows."""

    frames: list[Frame]
    images: Tensor
    left: int
    top: int
    right: int
    bottom: int

    @property
    def seen_size(self) -> tuple[int, int]:
        """(height, width) of the part."""
        return self.bottom - self.top, self.right - self.left


def prepared(frames: list[Frame], preprocess: Preprocessing) -> Batch:
    """Frames with the input that the network is given for them."""
    height, width = frames[0].picture.shape[:2]
    images = preprocess([Image.fromarray(frame.picture) for frame in frames])
    return Batch(frames, images, *preprocess.seen_box((width, height)))


class Drawing:
    """Lays heatmaps over frames at the frames' size, and counts what was drawn.

    Attributes:
        count: frames so far.
    """

    def __init__(self, colormap: str, alpha: float, device: torch.device) -> None:
        self.count = 0
        self._colormap, self._alpha, self._device = colormap, alpha, device
        self._classes: Counter[int] = Counter()
        self._layer: object = ""

    def __call__(self, batch: Batch, explanation: Explanation) -> NDArray[numpy.uint8]:
        """The frames, (B,H,W,3) uint8; what the network did not see is as it was."""
        pictures = torch.from_numpy(numpy.stack([frame.picture for frame in batch.frames])).to(self._device)
        seen = pictures[:, batch.top : batch.bottom, batch.left : batch.right]
        blended = overlay(seen.permute(0, 3, 1, 2), explanation.heatmap, colormap=self._colormap, alpha=self._alpha)
        seen.copy_(blended.permute(0, 2, 3, 1))
        assert explanation.target is not None  # a Question asks about classes, never about a callable
        self._classes.update(explanation.target.tolist())
        self._layer = explanation.layer
        self.count += len(batch.frames)
        return pictures.cpu().numpy()

    def summary(self, class_names: Sequence[str]) -> str:
        """What was drawn, in words."""
        if not self.count:
            return "no frame came"
        ((number, times),) = self._classes.most_common(1)
        frames = "1 frame" if self.count == 1 else f"{self.count} frames"
        return f"{frames} explained at layer {self._layer}: {class_names[number]} ({number}) in {times}"
