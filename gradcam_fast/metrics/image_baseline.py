"""What takes a removed pixel's place: zeros, the mean, a blur, an inpainting, or an image of the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d

from .imputation import impute

if TYPE_CHECKING:
    from torch import Tensor

    Baseline = str | Tensor | Callable[[Tensor], Tensor]

__all__ = ["as_baseline", "check_baseline", "pixel_remover"]

BLUR = 31
"""Side of the box over which the baseline "blur" averages, in pixels."""

INPAINTING = "inpainting"


def check_baseline(baseline: Baseline, images: Tensor | None = None) -> None:
    """Raise TypeError or ValueError unless the baseline is a known name, a tensor or a callable.

    Args:
        images: whose pixels are removed; None where they are only dimmed, so that nothing can be painted in.
    """
    if not isinstance(baseline, (str, torch.Tensor)) and not callable(baseline):
        raise TypeError(
            f"baseline is a {type(baseline).__name__}; give a name, a tensor, or a callable that returns one"
        )
    if not isinstance(baseline, str) or baseline in _BASELINES:
        return
    known = ", ".join(map(repr, (*_BASELINES, INPAINTING) if images is not None else _BASELINES))
    if baseline != INPAINTING:
        raise ValueError(
            f"baseline={baseline!r} is unknown; use one of {known}, a tensor, or a callable from the images to one"
        )
    if images is None:
        raise ValueError(
            f"baseline={baseline!r} needs removed pixels, and a heatmap only dims them; use one of {known}"
        )
    if isinstance(images, torch.Tensor) and images.dim() != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; pixels are painted into images (B,C,H,W) only")


@torch.no_grad()
def as_baseline(images: Tensor, baseline: Baseline) -> Tensor:
    """The images (B,C,H,W) that a baseline stands for.

    Raises:
        TypeError, ValueError: it is no tensor, or one that does not broadcast to the images.
    """
    if isinstance(baseline, str):
        return _BASELINES[baseline](images)
    made = baseline(images) if callable(baseline) else baseline
    if not isinstance(made, torch.Tensor):
        raise TypeError(f"baseline returned a {type(made).__name__}; it must return a tensor")
    try:
        return made.detach().to(images).expand_as(images)
    except RuntimeError:
        raise ValueError(
            f"baseline has shape {tuple(made.shape)}; expected one that broadcasts to the images' {tuple(images.shape)}"
        ) from None


def pixel_remover(images: Tensor, baseline: Baseline) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of the numbers (n,) of images and of removed pixels (n,H,W) bool, to images (n,C,H,W) without them."""
    if isinstance(baseline, str) and baseline == INPAINTING:
        return lambda rows, removed: impute(images[rows], removed)
    behind = as_baseline(images, baseline)
    return lambda rows, removed: torch.where(removed[:, None], behind[rows], images[rows])


def _mean(images: Tensor) -> Tensor:
    return images.mean(tuple(range(2, images.dim())), keepdim=True).expand_as(images)


def _blur(images: Tensor) -> Tensor:
    # Side by side, the box costs 31 sums a pixel for each side and not 31 times 31; the border cuts it alike.
    sides = images.dim() - 2
    pool = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}[sides]
    for side in range(sides):
        kernel, padding = [1] * sides, [0] * sides
        kernel[side], padding[side] = BLUR, BLUR // 2
        images = pool(images, kernel, 1, padding, count_include_pad=False)
    return images


_BASELINES: dict[str, Callable[[Tensor], Tensor]] = {"zeros": torch.zeros_like, "mean": _mean, "blur": _blur}
