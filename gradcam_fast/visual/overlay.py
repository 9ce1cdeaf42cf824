"""Heatmaps laid over the images they explain, on the device where both are.

Knows nothing of models, of how a heatmap was made, or of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING

import torch

from .colormaps import check_range, check_tensor, colorize
from .edges import outlines

if TYPE_CHECKING:
    from torch import Tensor

    Levels = float | Iterable[float] | Tensor

__all__ = ["overlay"]


@torch.no_grad()
def overlay(
    images: Tensor,
    heatmap: Tensor,
    *,
    colormap: str = "jet",
    alpha: float | Tensor = 0.5,
    edges: bool = False,
    mean: Levels | None = None,
    std: Levels | None = None,
) -> Tensor:
    """Blend coloured heatmaps over the images they explain.

    The pixels are OpenCV's recipe, ``addWeighted(image, 1 - alpha, applyColorMap(heatmap), alpha, 0)``, to within one
    of 255 levels. Values beyond the ranges below are clamped, NaN counts as 0; on the CPU, where looking costs no
    waiting, values beyond what resizing can overshoot are refused.

    Args:
        images: (B,3,H,W), or (B,1,H,W) for grayscale, or one image (C,H,W): uint8, or floating in [0,1], or floating
            and normalised as ``(image - mean) / std`` when ``mean`` and ``std`` are given.
        heatmap: floating in [0,1], on the images' device: (B,H,W), or (B,K,H,W) for K maps of each image, or (H,W).
        colormap: an OpenCV colormap in lower case (``jet``, ``viridis``, ...; where both libraries have a name,
            OpenCV's counts) or, if matplotlib is installed, one of its names. Red is hot in ``jet``.
        alpha: weight of the heatmap's colour, from 0 (image only) to 1 (colour only): one number, or one for each
            value of the heatmap, in its shape. ``alpha=heatmap`` leaves the image as it is where the map is cold.
        edges: draw the images' outlines, gray on white, in place of the images. OpenCV finds them on the CPU: the one
            thing for which images on an accelerator leave it.
        mean, std: what the images were normalised with, on the [0,1] scale: one number or one per channel.

    Returns:
        uint8 RGB on the images' device: (B,3,H,W), or (B,K,3,H,W) when the heatmap is (B,K,H,W).

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or ranges that do not fit, an unknown colormap.
        ImportError: OpenCV does not import.

    Example:
        >>> import torch
        >>> from gradcam_fast import overlay
        >>> gray = torch.full((1, 3, 1, 2), 0.5)
        >>> heatmap = torch.tensor([[[0.0, 1.0]]])
        >>> overlay(gray, heatmap).squeeze().T.tolist()  # dark blue where cold, dark red where hot
        [[64, 64, 128], [128, 64, 64]]
        >>> overlay(gray, heatmap, alpha=heatmap).squeeze().T.tolist()  # nothing where cold
        [[128, 128, 128], [128, 0, 0]]
    """
    check_tensor("images", images, "(B,3,H,W) or (3,H,W)")
    check_tensor("heatmap", heatmap, "(B,H,W), (B,K,H,W) or (H,W)")
    weight = _as_weight(alpha, heatmap)
    images, heatmap = _as_batch(images, heatmap)
    pixels = _as_pixels(images, mean, std)
    colors = colorize(heatmap, colormap)
    if edges:
        pixels = outlines(pixels.round().to(torch.uint8)).float()
    if heatmap.dim() == 4:
        pixels = pixels[:, None]
    return (pixels * (1 - weight) + colors * weight).round_().to(torch.uint8).contiguous()


def _as_weight(alpha: float | Tensor, heatmap: Tensor) -> float | Tensor:
    """A number, or (B[,K],1,H,W) to go with colours (B[,K],3,H,W)."""
    if not isinstance(alpha, torch.Tensor):
        if not isinstance(alpha, Real):
            raise TypeError(
                f"alpha={alpha!r} is a {type(alpha).__name__}; give a number from 0 to 1, or a tensor of the heatmap's "
                "shape, such as the heatmap itself"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(
                f"alpha={alpha} is outside [0, 1]; 0 shows the image only and 1 the heatmap's colours only"
            )
        return alpha
    if alpha.shape != heatmap.shape or not alpha.is_floating_point():
        raise ValueError(
            f"alpha is {tuple(alpha.shape)} of {alpha.dtype}; expected one number, or floating weights of the "
            f"heatmap's shape {tuple(heatmap.shape)}"
        )
    if alpha.device != heatmap.device:
        raise ValueError(f"alpha is on {alpha.device} but heatmap is on {heatmap.device}; move one to the other's")
    alpha = alpha.float()
    check_range("alpha", alpha, "0 shows the image only and 1 the heatmap's colours only")
    return alpha.nan_to_num(nan=0.0).clamp(0, 1).unsqueeze(-3)


def _as_batch(images: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
    if images.dim() not in (3, 4) or images.shape[-3] not in (1, 3):
        raise ValueError(
            f"images has shape {tuple(images.shape)}; expected (B,3,H,W) or (B,1,H,W), or one image (3,H,W) or (1,H,W)"
        )
    if heatmap.dim() not in (2, 3, 4):
        raise ValueError(f"heatmap has shape {tuple(heatmap.shape)}; expected (B,H,W) or (B,K,H,W), or one map (H,W)")
    if images.device != heatmap.device:
        raise ValueError(f"images is on {images.device} but heatmap is on {heatmap.device}; move one to the other's")
    images = images if images.dim() == 4 else images[None]
    heatmap = heatmap if heatmap.dim() > 2 else heatmap[None]
    if images.shape[0] != heatmap.shape[0] or images.shape[-2:] != heatmap.shape[-2:]:
        height, width = images.shape[-2:]
        raise ValueError(
            f"heatmap {tuple(heatmap.shape)} does not fit images {tuple(images.shape)}; expected one heatmap per image "
            f"and the images' height and width, which explain(..., size=({height}, {width})) gives"
        )
    return images, heatmap


def _as_pixels(images: Tensor, mean: Levels | None, std: Levels | None) -> Tensor:
    """The images as floating levels from 0 to 255."""
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together; give both, or neither for images in [0,1]")
    if images.dtype == torch.uint8:
        if mean is not None:
            raise ValueError("uint8 images cannot have been normalised; leave out mean and std")
        return images.float()
    if not images.is_floating_point():
        raise TypeError(f"images has dtype {images.dtype}; give uint8, or floating images in [0,1]")
    images = images.float()
    if mean is not None and std is not None:
        images = images * _per_channel("std", std, images) + _per_channel("mean", mean, images)
    check_range("images", images, "give mean and std if they are normalised, or divide 0..255 levels by 255")
    return images.nan_to_num(nan=0.0).clamp(0, 1) * 255


def _per_channel(name: str, values: Levels, images: Tensor) -> Tensor:
    if isinstance(values, torch.Tensor):
        channels = values.to(images).flatten()
    else:
        # Filled on the device: a tensor made of the numbers here would be copied there, and the host would wait.
        each = tuple(values) if isinstance(values, Iterable) else (values,)
        if not all(isinstance(value, (Real, torch.Tensor)) for value in each):
            raise TypeError(f"{name}={values!r} is no number; give one, or one per channel")
        if name == "std" and any(isinstance(value, Real) and not float(value) > 0 for value in each):
            raise ValueError(f"std={values!r} is not positive; give what the images were divided by")
        channels = images.new_empty(len(each))
        for channel, value in zip(channels, each, strict=True):
            channel.fill_(value)
    if len(channels) not in (1, images.shape[1]):
        raise ValueError(f"{name} has {len(channels)} values for {images.shape[1]} channels; give one, or one each")
    return channels[:, None, None]
