"""SESS, saliency enhancing with scaling and sliding (Tursun et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .grad_cam import GradCAM
from .utils.image import scale_cam_image
from .utils.model_targets import ClassifierOutputTarget

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .base_cam import BaseCAM

__all__ = ["SESS", "sliding_window", "window_starts"]


class _Window(NamedTuple):
    """A square window: its corner in a scaled image, and the sides of that image."""

    x: int
    y: int
    width: int
    height: int


class SESS:
    """Maps of windows at several scales, weighted by the windows' scores and laid over each other.

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        base_method: the class that makes the maps; it gets all further arguments.
        scales: lengths to which the image's shorter side is resized; None = ``num_scales`` of them, from the window's
            side in steps of ``scale_step_ratio`` times that.
        window_size: side of the windows; None = the image's shorter side.
        step_size: distance of the windows; None = their side.
        pre_filter_ratio: the share of the windows, those of the lowest scores, that is left out; below 1.
        theta: values of a map up to here do not count in the mean.
        pool: "mean" over the windows at each pixel, or "max".
        smooth: blur the result.
        use_softmax_scores: apply the target to the softmax of the output where windows are scored.
        batch_size: how many windows go through the model at once.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAM,
        scales: Sequence[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2 / 7,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: Literal["mean", "max"] = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **choices: Any,
    ) -> None:
        if pool not in ("mean", "max"):
            raise ValueError(f"pool={pool!r}; give 'mean' or 'max'")
        if not 0 <= pre_filter_ratio < 1:
            raise ValueError(f"pre_filter_ratio={pre_filter_ratio} is not in [0,1)")
        if num_scales < 1:
            raise ValueError(f"num_scales={num_scales}; give at least 1")
        self.base_cam = base_method(model, target_layers, reshape_transform, **choices)
        self.model = model
        self.device = self.base_cam.device
        self.scales = scales
        self.num_scales = num_scales
        self.scale_step_ratio = scale_step_ratio
        self.window_size = window_size
        self.step_size = step_size
        self.pre_filter_ratio = pre_filter_ratio
        self.theta = theta
        self.pool = pool
        self.smooth = smooth
        self.use_softmax_scores = use_softmax_scores
        self.batch_size = batch_size

    def __call__(self, *args: Any, **choices: Any) -> NDArray[np.float32]:
        return self.forward(*args, **choices)

    def forward(
        self, input_tensor: Tensor, targets: Sequence[Any] | None = None, eigen_smooth: bool = False
    ) -> NDArray[np.float32]:
        """Maps (B,H,W) as :class:`BaseCAM` returns them."""
        images = input_tensor.detach().to(self.device)
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"targets has {len(targets)} targets for {len(images)} images; give one for each image")
        maps = [
            self._map_of_image(image, None if targets is None else targets[i], eigen_smooth)
            for i, image in enumerate(images.split(1))
        ]
        return scale_cam_image(maps)

    def _map_of_image(self, image: Tensor, target: Any, eigen_smooth: bool) -> NDArray[np.float32]:
        height, width = image.shape[-2:]
        if target is None:
            with torch.no_grad():
                target = ClassifierOutputTarget(int(self.model(image)[0].argmax()))
        patches, windows = self._cut(image)
        scores = self._scores(patches, target)
        chosen = np.argsort(scores)[int(len(scores) * self.pre_filter_ratio) :]
        highest = scores[chosen[-1]]
        weights = scores / highest if highest > 0 else np.ones_like(scores)
        total, count = np.zeros((2, height, width), np.float32)
        for first in range(0, len(chosen), self.batch_size):
            indices = chosen[first : first + self.batch_size]
            maps = self.base_cam(patches[torch.from_numpy(indices)], [target] * len(indices), eigen_smooth=eigen_smooth)
            for i, of_window in zip(indices, maps, strict=True):
                pasted = _paste(of_window * weights[i], windows[i], (width, height))
                if self.pool == "max":
                    np.maximum(total, pasted, out=total)
                else:
                    counts = pasted > self.theta
                    total += pasted * counts
                    count += counts
        if self.pool == "mean":
            total = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        return cv2.GaussianBlur(total, (11, 11), 5.0) if self.smooth else total  # type: ignore[return-value]

    def _cut(self, image: Tensor) -> tuple[Tensor, list[_Window]]:
        """All windows (n,C,side,side) of the image at all scales."""
        height, width = image.shape[-2:]
        shorter = min(height, width)
        side = self.window_size or shorter
        step = round(side * self.scale_step_ratio)
        scales = [side + step * i for i in range(self.num_scales)] if self.scales is None else self.scales
        patches, windows = [], []
        for scale in scales:
            if scale < side:
                raise ValueError(f"scale {scale} is less than the windows' side {side}; give larger scales")
            sides = int(scale * height / shorter), int(scale * width / shorter)
            # Antialiased bilinear, as torchvision resizes tensors.
            scaled = F.interpolate(image, sides, mode="bilinear", antialias=True)
            for x, y in sliding_window(*sides, self.step_size or side, side):
                patches.append(scaled[:, :, y : y + side, x : x + side])
                windows.append(_Window(x, y, sides[1], sides[0]))
        return torch.cat(patches), windows

    @torch.no_grad()
    def _scores(self, patches: Tensor, target: Any) -> NDArray[Any]:
        """The target's scores (n,) of the windows; negative ones are no weights and count 0."""
        outputs = torch.cat([self.model(batch) for batch in patches.split(self.batch_size)])
        scores = target(outputs.softmax(-1) if self.use_softmax_scores else outputs)
        return np.maximum(scores.cpu().numpy(), 0)

    def __enter__(self) -> SESS:
        return self

    def __exit__(self, *_: object) -> None:
        self.base_cam.activations_and_grads.release()

    def __del__(self) -> None:
        if "base_cam" in vars(self):
            self.base_cam.activations_and_grads.release()


def _paste(of_window: NDArray[np.float32], window: _Window, size: tuple[int, int]) -> NDArray[np.float32]:
    """A window's map at its place in an image that is then resized to (W,H)."""
    canvas = np.zeros((window.height, window.width), np.float32)
    canvas[window.y : window.y + len(of_window), window.x : window.x + of_window.shape[1]] = of_window
    return cv2.resize(canvas, size)  # type: ignore[return-value]


def sliding_window(height: int, width: int, step_size: int, window_size: int) -> list[tuple[int, int]]:
    """The corners (x, y) of square windows that cover an image, row by row.

    Example:
        >>> sliding_window(5, 5, 4, 4)
        [(0, 0), (1, 0), (0, 1), (1, 1)]
    """
    return [
        (x, y)
        for y in window_starts(height, step_size, window_size)
        for x in window_starts(width, step_size, window_size)
    ]


def window_starts(length: int, step_size: int, window_size: int) -> list[int]:
    """Where windows begin along a side; the last is moved back until it ends with the side."""
    last = max(length - window_size, 0)
    return [*range(0, last, step_size), last]
