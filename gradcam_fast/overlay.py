"""Heatmaps as colours, alone or laid over the images they explain, on the device where both are.

Knows nothing of models, of how a heatmap was made, or of files; OpenCV and matplotlib are asked only for their tables.
"""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["colorize", "colormap_table", "overlay"]

# Bicubic resizing overshoots [0,1] by up to about this much; forgotten normalisation or a 0..255 scale by far more.
OVERSHOOT = 0.25


@torch.no_grad()
def overlay(
    images: Tensor,
    heatmap: Tensor,
    *,
    colormap: str = "jet",
    alpha: float = 0.5,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
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
        alpha: weight of the heatmap's colour, from 0 (image only) to 1 (colour only).
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
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside [0, 1]; 0 shows the image only and 1 the heatmap's colours only")
    images, heatmap = _as_batch(images, heatmap)
    pixels = _as_pixels(images, mean, std)
    colors = colorize(heatmap, colormap)
    if heatmap.dim() == 4:
        pixels = pixels[:, None]
    return (pixels * (1 - alpha) + colors * alpha).round_().to(torch.uint8).contiguous()


@torch.no_grad()
def colorize(heatmap: Tensor, colormap: str = "jet") -> Tensor:
    """Give every value of a heatmap its colour, as OpenCV's ``applyColorMap(uint8(255 * heatmap))`` does, but in RGB.

    Args:
        heatmap: (...,H,W), floating in [0,1]; out of range is treated as in :func:`overlay`.
        colormap: as in :func:`overlay`.

    Returns:
        (...,3,H,W) uint8, on the heatmap's device.

    Raises:
        As :func:`overlay`.

    Example:
        >>> import torch
        >>> from gradcam_fast.overlay import colorize
        >>> colorize(torch.ones(1, 1)).flatten().tolist()
        [128, 0, 0]
    """
    if not heatmap.is_floating_point():
        raise TypeError(f"heatmap has dtype {heatmap.dtype}; give a floating heatmap with values in [0,1]")
    table = colormap_table(colormap, heatmap.device)
    heatmap = heatmap.float()
    _check_range("heatmap", heatmap, 'use normalize="minmax" or scale it')
    levels = (heatmap.nan_to_num(nan=0.0).clamp(0, 1) * 255).to(torch.int32)
    return table[levels].movedim(-1, -3)


@functools.lru_cache(maxsize=64)
def colormap_table(colormap: str, device: torch.device) -> Tensor:
    """The 256 colours of a named colormap, coldest first: (256,3) uint8 RGB on ``device``.

    Raises:
        ValueError: the name is unknown; the message has the nearest names and OpenCV's choices.
        ImportError: OpenCV does not import.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"colormaps are taken from OpenCV, which does not import ({error}); run pip install opencv-python-headless"
        ) from error
    import numpy

    opencv = {name[9:].lower(): getattr(cv2, name) for name in dir(cv2) if name.startswith("COLORMAP_")}
    if colormap in opencv:
        ramp = numpy.arange(256, dtype=numpy.uint8)[:, None]
        colors = cv2.applyColorMap(ramp, opencv[colormap])[:, 0, ::-1]
    else:
        matplotlib = _matplotlib_colormaps()
        if colormap not in matplotlib:
            raise ValueError(_unknown(colormap, sorted(opencv), sorted(matplotlib)))
        colors = matplotlib[colormap](numpy.linspace(0, 1, 256), bytes=True)[:, :3]
    return torch.from_numpy(colors.copy()).to(device)


def _matplotlib_colormaps() -> Mapping[str, Callable[..., Any]]:
    try:
        from matplotlib import colormaps
    except ImportError:
        return {}
    return colormaps


def _unknown(colormap: str, opencv: list[str], matplotlib: list[str]) -> str:
    near = difflib.get_close_matches(str(colormap), {*opencv, *matplotlib}, n=3)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    others = "any of matplotlib's names" if matplotlib else "install matplotlib for its names too"
    return f"colormap={colormap!r} is unknown{hint}; choose one of {', '.join(opencv)}, or {others}"


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


def _as_pixels(images: Tensor, mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Tensor:
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
    _check_range("images", images, "give mean and std if they are normalised, or divide 0..255 levels by 255")
    return images.nan_to_num(nan=0.0).clamp(0, 1) * 255


def _per_channel(name: str, values: float | Sequence[float], images: Tensor) -> Tensor:
    channels = torch.as_tensor(values, dtype=images.dtype, device=images.device).flatten()
    if len(channels) not in (1, images.shape[1]):
        raise ValueError(f"{name} has {len(channels)} values for {images.shape[1]} channels; give one, or one each")
    return channels[:, None, None]


def _check_range(name: str, values: Tensor, remedy: str) -> None:
    # Reading the extremes makes the host wait for an accelerator, which no picture is worth.
    if values.device.type != "cpu" or values.numel() == 0:
        return
    low, high = (extreme.item() for extreme in values.aminmax())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"{name} ranges from {low:.3g} to {high:.3g}; expected [0,1]; {remedy}")
