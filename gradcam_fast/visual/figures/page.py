"""Layout of a figure from top to bottom: titles, captions, pictures pixel for pixel, bars and charts.

Uses matplotlib's objects and never pyplot, whose global state would keep threads from drawing at the same time.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["Page", "split_evenly"]

T = TypeVar("T")

# A power of two, so that pixels / DPI * DPI is exact and pictures lie on whole pixels. All lengths below are in pixels.
DPI = 128
NARROWEST_COLUMN = 160
GAP = 12
FIRST_LINE, NEXT_LINE, BELOW_TEXT = 32, 21, 6
BAR_HEIGHT = 8
# Of a text: names of classes come from files, and may be of any length.
MOST_CHARACTERS, MOST_LINES = 500, 12
FONT_POINTS = 9.5
# Of Chinese, Japanese and Korean, of India, of Thai: whatever of these is installed.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAGothic",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Noto Sans Devanagari", "Lohit Devanagari", "Nirmala UI", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil",
    "Arial Unicode MS", "Unifont",
)  # fmt: skip
# Space for the ticks and labels of a chart: left, right, bottom, top.
CHART_MARGINS = 76, 48, 56, 8


class Page:
    """A figure under construction: every method adds a part below the earlier parts.

    Args:
        columns: how many pictures are side by side.
        width: of the widest picture, in pixels.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def __init__(self, columns: int, width: int) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("figures need matplotlib, which is not installed; run pip install matplotlib") from error
        self.columns, self.column_width = columns, max(width, NARROWEST_COLUMN)
        self.width = GAP + columns * (self.column_width + GAP)
        self.height = 0
        self._parts: list[Callable[[Figure], None]] = []
        self._text_measure = Figure(dpi=DPI)

    def title(self, text: str) -> None:
        """Add a bold title across the page, on as many lines as it needs."""
        self._write([text], [GAP], self.width - 2 * GAP, ha="left", weight="bold", color="black")

    def stamp(self, words: str) -> None:
        """Add words in red across the page, if there are any."""
        if words:
            self._write([words], [GAP], self.width - 2 * GAP, ha="left", weight="bold", color="tab:red")

    def captions(self, texts: Sequence[str]) -> None:
        """Add a text in the middle of each column, on as many lines as it needs; a short row is centred."""
        middles = [self._left(j, len(texts)) + self.column_width / 2 for j in range(len(texts))]
        self._write(texts, middles, self.column_width, ha="center", color="0.35")

    def pictures(self, pictures: Sequence[Tensor | None]) -> None:
        """Add pictures (3,h,w) uint8 side by side, pixel for pixel; None leaves its column empty.

        A row of fewer pictures than the page has columns is centred.
        """
        for j, picture in enumerate(pictures):
            if picture is not None:
                left = self._left(j, len(pictures)) + (self.column_width - picture.shape[-1]) // 2
                self._parts.append(
                    partial(self._draw_picture, picture.permute(1, 2, 0).cpu().numpy(), left, self.height)
                )
        self.height += GAP + max((picture.shape[-2] for picture in pictures if picture is not None), default=0)

    def bar(self, share: float) -> None:
        """Add a bar across the page, of which a share in [0,1] is filled from the left."""
        self._parts.append(partial(self._draw_bar, share, self.height))
        self.height += BAR_HEIGHT + GAP

    def colour_bar(self, colours: Tensor, labels: Sequence[str]) -> None:
        """Add a bar in the colours (N,3) uint8 of a colormap, coldest left, with labels below it from end to end."""
        left = (self.width - self.column_width) // 2
        self._parts.append(partial(self._draw_colours, colours.float().div(255).tolist(), left, self.height))
        self.height += BAR_HEIGHT
        width = self.column_width
        style = {"va": "bottom", "fontsize": FONT_POINTS - 1, "color": "0.35"}
        for place, label in enumerate(labels):
            share = place / max(1, len(labels) - 1)
            ha = "left" if place == 0 else "right" if place == len(labels) - 1 else "center"
            y = self.height + NEXT_LINE
            self._parts.append(partial(self._draw_text, label, left + share * width, y, {**style, "ha": ha}))
        self.height += NEXT_LINE + BELOW_TEXT

    def chart(self, height: int, draw: Callable[[Axes], None]) -> None:
        """Add a chart across the page: ``draw`` fills its axes, beside which there is space for ticks and labels."""
        self._parts.append(partial(self._draw_chart, draw, self.height, height))
        self.height += height

    def gap(self) -> None:
        """Add an empty space."""
        self.height += GAP

    def figure(self) -> Figure:
        """Return the figure of all parts so far: one that notebooks show, and whose ``show()`` works without pyplot."""
        from .shown_figure import ShownFigure

        figure: Figure = ShownFigure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        for draw in self._parts:
            draw(figure)
        return figure

    def _left(self, column: int, columns: int) -> int:
        indent = (self.columns - columns) * (self.column_width + GAP) // 2
        return GAP + indent + column * (self.column_width + GAP)

    def _shares(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Turn pixels from the upper left corner into matplotlib's shares of the page from the lower left one."""
        bottom = 1 - (top + height) / self.height
        return left / self.width, bottom, width / self.width, height / self.height

    def _write(self, texts: Sequence[str], positions: Sequence[float], width: float, **style: Any) -> None:
        style |= {"family": font_families(), "va": "bottom", "fontsize": FONT_POINTS, "parse_math": False}
        wrapped = [self._wrapped(text, width, style) for text in texts]
        height = FIRST_LINE + NEXT_LINE * max(text.count("\n") for text in wrapped)
        for text, x in zip(wrapped, positions, strict=True):
            self._parts.append(partial(self._draw_text, text, x, self.height + height - BELOW_TEXT, style))
        self.height += height

    def _wrapped(self, text: str, width: float, style: Mapping[str, Any]) -> str:
        """Break the lines of a text so that each fits the width; a text that is too long to be read is cut."""
        if is_cut := len(text) > MOST_CHARACTERS:
            text = text[:MOST_CHARACTERS]
        lines = [part for line in text.splitlines() for part in self._wrapped_line(line, width, style)]
        if is_cut or len(lines) > MOST_LINES:
            lines = lines[:MOST_LINES]
            lines[-1] = f"{lines[-1][:-1]}…"
        return "\n".join(lines)

    def _wrapped_line(self, line: str, width: float, style: Mapping[str, Any]) -> list[str]:
        characters, parts = len(line), [line]
        while characters > 1 and (widest := max((self._measure(part, style) for part in parts), default=0)) > width:
            characters = min(characters - 1, int(characters * max(0.5, width / widest)) + 1)
            parts = textwrap.wrap(line, characters)
        return parts

    def _measure(self, text: str, style: Mapping[str, Any]) -> float:
        return self._text_measure.text(0, 0, text, **style).get_window_extent().width

    def _draw_text(self, text: str, x: float, y: float, style: Mapping[str, Any], figure: Figure) -> None:
        left, bottom, _, _ = self._shares(x, y, 0, 0)
        figure.text(left, bottom, text, **style)

    def _draw_picture(self, pixels: Any, left: float, top: float, figure: Figure) -> None:
        height, width = pixels.shape[:2]
        axes = figure.add_axes(self._shares(left, top, width, height))
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="nearest", aspect="auto", origin="upper")

    def _draw_bar(self, share: float, top: float, figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        full = self.width - 2 * GAP
        for width, color in ((full, "0.9"), (full * share, "tab:blue")):
            left, bottom, *sides = self._shares(GAP, top, width, BAR_HEIGHT)
            figure.add_artist(Rectangle((left, bottom), *sides, color=color, linewidth=0))

    def _draw_colours(self, colours: Sequence[Any], left: float, top: float, figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        step = self.column_width / len(colours)
        for place, colour in enumerate(colours):
            x, y, *sides = self._shares(left + place * step, top, step, BAR_HEIGHT)
            figure.add_artist(Rectangle((x, y), *sides, color=colour, linewidth=0, antialiased=False))

    def _draw_chart(self, draw: Callable[[Axes], None], top: float, height: float, figure: Figure) -> None:
        left, right, below, above = CHART_MARGINS
        axes = figure.add_axes(self._shares(left, top + above, self.width - left - right, height - above - below))
        axes.tick_params(labelsize=FONT_POINTS - 1)
        draw(axes)


@functools.cache
def font_families() -> list[str]:
    """The fonts of all texts: matplotlib's own, and those installed here that have the letters it lacks."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


def split_evenly(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Split the items into rows of about equal length, none longer than ``most``."""
    rows = math.ceil(len(items) / most)
    length = math.ceil(len(items) / rows)
    return [items[start : start + length] for start in range(0, len(items), length)]
