"""Colours a heatmap on its device, with the 256 colours of a colormap of OpenCV or matplotlib.

Also holds the checks of tensors and ranges that all of ``visual`` shares.
"""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["check_range", "check_tensor", "colorize", "colormap_table", "default_colormap", "on_unit_scale"]

# Bicubic resizing leaves [0,1] by about this much at most; images that were normalised or are on 0..255 by far more.
OVERSHOOT = 0.25


@torch.no_grad()
def colorize(heatmap: Tensor, colormap: str = "jet") -> Tensor:
    """Colour every value of a heatmap as OpenCV's ``applyColorMap(uint8(255 * heatmap))`` does, but in RGB.

    Args:
        heatmap: (...,H,W), floating in [0,1]; other values are treated as in :func:`gradcam_fast.overlay`.
        colormap: as in :func:`gradcam_fast.overlay`.

    Returns:
        (...,3,H,W) uint8 RGB, on the heatmap's device.

    Raises:
        TypeError: the heatmap is not a floating tensor.
        ValueError: an unknown colormap; on the CPU, values far from [0,1].
        ImportError: OpenCV cannot be imported.

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


def default_colormap(colormap: str | None, signed: bool) -> str:
    """The colormap asked for; None is one whose middle is neutral for signed maps, else ``jet``."""
    return colormap or ("coolwarm" if signed else "jet")


def on_unit_scale(heatmap: Any) -> Any:
    """A signed heatmap, in [-1,1], on [0,1]: 0 becomes 0.5. Anything else that is no floating tensor as it is."""
    if not isinstance(heatmap, torch.Tensor) or not heatmap.is_floating_point():
        return heatmap
    return (heatmap.float().nan_to_num(nan=0.0) + 1) / 2


def check_tensor(name: str, value: object, shape: str) -> None:
    """Raise TypeError unless ``value`` is a tensor; the message says how to make one of a numpy array."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__}; give a tensor {shape}, such as torch.from_numpy(array), with "
            ".permute(2, 0, 1) if its channels are last"
        )


@functools.lru_cache(maxsize=64)
def colormap_table(colormap: str, device: torch.device) -> Tensor:
    """The 256 colours of a named colormap, coldest first: (256,3) uint8 RGB on ``device``.

    The table is copied to a device once and kept; the host waits for that copy, so that any stream can use the table.

    Raises:
        ValueError: the name is unknown; the message has the nearest names and OpenCV's colormaps.
        ImportError: OpenCV cannot be imported.

    Example:
        >>> import torch
        >>> from gradcam_fast.visual.colormaps import colormap_table
        >>> colormap_table("jet", torch.device("cpu"))[[0, 255]].tolist()
        [[0, 0, 128], [128, 0, 0]]
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"colormaps come from OpenCV, which cannot be imported ({error}); run pip install opencv-python-headless"
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
    similar = difflib.get_close_matches(str(colormap), {*opencv, *matplotlib}, n=3)
    hint = f" (did you mean {' or '.join(similar)}?)" if similar else ""
    others = "any colormap of matplotlib" if matplotlib else "install matplotlib for its colormaps too"
    return f"colormap={colormap!r} is unknown{hint}; choose one of {', '.join(opencv)}, or {others}"


def check_range(name: str, values: Tensor, remedy: str) -> None:
    """Raise ValueError for values farther outside [0,1] than resizing can explain; checks tensors on the CPU only."""
    # Reading the extremes of a tensor on an accelerator would make the host wait.
    if values.device.type != "cpu" or values.numel() == 0:
        return
    low, high = (extreme.item() for extreme in values.aminmax())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"{name} ranges from {low:.3g} to {high:.3g}; expected [0,1]; {remedy}")
