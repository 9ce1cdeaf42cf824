"""Figures for people: explanations drawn beside the photo they explain.

Knows nothing of models, of explanations or of photo files: it is given pixels, maps and titles. matplotlib is used
through its objects only, so that no global state is touched and threads may draw at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

from .overlay import colorize, overlay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["panels", "save"]

# Lengths are pixels. With a power of two, pixels / DPI * DPI is exact, so that panels fall on whole pixels.
DPI = 128
PANEL_WIDTH, PANEL_HEIGHT = 384, 512
NARROWEST = 160
GAP = 12
LINE = 32
FONT_POINTS = 9.5


def panels(
    photo: Tensor, heatmap: Tensor, titles: Sequence[str], *, colormap: str = "jet", alpha: float = 0.5
) -> Figure:
    """Draw photo, heatmap and overlay side by side, one row for each heatmap, each row under its title.

    The photo keeps its proportions. Every panel is drawn pixel for pixel at one common size, at most 384 x 512, so that
    a place in the photo is at the same place in the heatmap and in the overlay.

    Args:
        photo: (3,H,W) uint8 RGB.
        heatmap: (K,h,w), floating in [0,1]; it covers the whole photo, whatever its own resolution.
        titles: K titles.
        colormap, alpha: as in :func:`gradcam_fast.overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: shapes that do not fit, an unknown colormap.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> photo = torch.zeros(3, 192, 384, dtype=torch.uint8)
        >>> figure = panels(photo, torch.rand(1, 7, 7), ["a class, 50.0 %"])
        >>> [int(side) for side in figure.bbox.size]
        [1200, 268]
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib, which is not installed; run pip install matplotlib") from error
    _check(photo, heatmap, titles)

    photo, heatmap = _at_panel_size(photo, heatmap)
    rows = len(titles)
    colored = colorize(heatmap, colormap)
    blended = overlay(photo[None], heatmap[None], colormap=colormap, alpha=alpha)[0]

    height, width = photo.shape[-2:]
    column = max(width, NARROWEST) + GAP
    row = LINE + height + GAP
    figure_width, figure_height = GAP + 3 * column, LINE + rows * row
    figure = Figure(figsize=(figure_width / DPI, figure_height / DPI), dpi=DPI, facecolor="white")

    def place(x: float, y: float) -> tuple[float, float]:
        return x / figure_width, 1 - y / figure_height

    def write(text: str, x: float, y: float, **style: Any) -> None:
        size = FONT_POINTS
        written = figure.text(*place(x, y), text, va="center", fontsize=size, parse_math=False, **style)
        # Hinting rounds letters to whole pixels, so that widths do not shrink quite as the font does.
        while (excess := written.get_window_extent().width / (figure_width - 2 * GAP)) > 1:
            size *= 0.98 / excess
            written.set_fontsize(size)

    for j, caption in enumerate(("photo", "heatmap", "overlay")):
        write(caption, GAP + j * column + (column - GAP) / 2, LINE * 0.55, ha="center", color="0.4")
    for i, title in enumerate(titles):
        top = LINE + i * row
        write(title, GAP, top + LINE * 0.5, ha="left", weight="bold")
        for j, panel in enumerate((photo, colored[i], blended[i])):
            left = GAP + j * column + (column - GAP - width) // 2
            corner = place(left, top + LINE + height)
            axes = figure.add_axes((*corner, width / figure_width, height / figure_height))
            axes.set_axis_off()
            axes.imshow(panel.permute(1, 2, 0).cpu().numpy(), interpolation="nearest", aspect="auto")
    return figure


# Written into every picture as its Exif "Software", so that a later run knows what it may replace.
MARK = "gradcam_fast"
_SOFTWARE = 0x0131


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure at its own size in the format of the path's suffix: ``.png`` to the pixel, ``.jpg`` at quality 90.

    Raises:
        ValueError: a suffix that Pillow does not know.
        OSError: the file cannot be written.
    """
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    exif = Image.Exif()
    exif[_SOFTWARE] = MARK
    Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB").save(path, quality=90, exif=exif)


def is_own(path: str | PathLike[str]) -> bool:
    """Whether the file at ``path`` is a picture that :func:`save` wrote."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return bool(picture.getexif().get(_SOFTWARE) == MARK)
    except OSError:
        return False


def _check(photo: Tensor, heatmap: Tensor, titles: Sequence[str]) -> None:
    if photo.dim() != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8:
        raise ValueError(f"photo is {tuple(photo.shape)} of {photo.dtype}; expected RGB, (3,H,W) of torch.uint8")
    if heatmap.dim() != 3 or len(heatmap) != len(titles) or not titles:
        raise ValueError(
            f"heatmap has shape {tuple(heatmap.shape)} and there are {len(titles)} titles; "
            "expected (K,h,w) and K titles, at least one"
        )


def _at_panel_size(photo: Tensor, heatmap: Tensor) -> tuple[Tensor, Tensor]:
    height, width = photo.shape[-2:]
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resized = interpolate(photo[None].float(), size, mode="bicubic", antialias=True)[0]
    photo = resized.round_().clamp_(0, 255).to(torch.uint8)
    return photo, interpolate(heatmap[None].float(), size, mode="bilinear")[0]
