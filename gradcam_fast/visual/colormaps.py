"""Heatmaps as colours: 256 of them, taken from OpenCV's or matplotlib's colormaps, on the device where the heatmap is.

Knows nothing of images, of how a heatmap was made, or of figures; the two libraries are asked only for their tables.
"""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["check_range", "colorize", "colormap_table"]

# Bicubic resizing overshoots [0,1] by up to about this much; forgotten normalisation or a 0..255 scale by far more.
OVERSHOOT = 0.25


@torch.no_grad()
def colorize(heatmap: Tensor, colormap: str = "jet") -> Tensor:
    """Give every value of a heatmap its colour, as OpenCV's ``applyColorMap(uint8(255 * heatmap))`` does, but in RGB.

    Args:
        heatmap: (...,H,W), floating in [0,1]; out of range is treated as in :func:`gradcam_fast.overlay`.
        colormap: as in :func:`gradcam_fast.overlay`.

    Returns:
        (...,3,H,W) uint8, on the heatmap's device.

    Raises:
        TypeError, ValueError: no floating heatmap, values far from [0,1] on the CPU, an unknown colormap.
        ImportError: OpenCV does not import.

    Example:
        >>> import torch
        >>> from gradcam_fast.visual.colormaps import colorize
        >>> colorize(torch.ones(1, 1)).flatten().tolist()
        [128, 0, 0]
    """
    check_tensor("heatmap", heatmap, "(...,H,W)")
    if not heatmap.is_floating_point():
        raise TypeError(f"heatmap has dtype {heatmap.dtype}; give a floating heatmap with values in [0,1]")
    table = colormap_table(colormap, heatmap.device)
    heatmap = heatmap.float()
    check_range("heatmap", heatmap, 'use normalize="minmax" or scale it')
    levels = (heatmap.nan_to_num(nan=0.0).clamp(0, 1) * 255).to(torch.int32)
    return table[levels].movedim(-1, -3)


def check_tensor(name: str, value: object, shape: str) -> None:
    """Refuse what is no tensor, and say how a picture of other libraries becomes one."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}; give a tensor {shape}: torch.from_numpy(array), and "
            ".permute(2, 0, 1) if its channels come last"
        )


@functools.lru_cache(maxsize=64)
def colormap_table(colormap: str, device: torch.device) -> Tensor:
    """The 256 colours of a named colormap, coldest first: (256,3) uint8 RGB on ``device``.

    Brought there once, for which the host waits: the table is for all streams.

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


def check_range(name: str, values: Tensor, remedy: str) -> None:
    """Refuse values farther from [0,1] than resizing can overshoot; on the CPU only."""
    # Reading the extremes makes the host wait for an accelerator, which no picture is worth.
    if values.device.type != "cpu" or values.numel() == 0:
        return
    low, high = (extreme.item() for extreme in values.aminmax())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"{name} ranges from {low:.3g} to {high:.3g}; expected [0,1]; {remedy}")
