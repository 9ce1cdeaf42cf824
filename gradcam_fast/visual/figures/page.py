"""A page for people, built from top to bottom: titles, captions, pictures to the pixel, bars and charts.

Knows nothing of heatmaps, photos or models, and nothing of files. matplotlib is used through its objects only, so that
no global state is touched and threads may draw at the same time.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["Page", "lines_of"]

T = TypeVar("T")

# Lengths are pixels. With a power of two, pixels / DPI * DPI is exact, so that pictures fall on whole pixels.
DPI = 128
NARROWEST = 160
GAP = 12
LINE, NEXT_LINE, BELOW_TEXT = 32, 21, 6
BAR = 8
FONT_POINTS = 9.5
# Room for the ticks and labels of a chart: left, right, bottom, top.
MARGINS = 76, 48, 56, 8


class Page:
    """A figure under construction; every method puts its part below what is there already.

    Args:
        columns: how many pictures lie side by side.
        width: of the widest picture.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def __init__(self, columns: int, width: int) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("figures need matplotlib, which is not installed; run pip install matplotlib") from error
        self.column = max(width, NARROWEST)
        self.width = GAP + columns * (self.column + GAP)
        self.height = 0
        self._parts: list[Callable[[Figure], None]] = []
        self._ruler = Figure(dpi=DPI)

    def title(self, text: str) -> None:
        """A bold line across the page, or as many as the text needs."""
        self._write([text], [GAP], self.width - 2 * GAP, ha="left", weight="bold", color="black")

    def captions(self, texts: Sequence[str]) -> None:
        """A text for each column, in its middle, on as many lines as it needs."""
        middles = [self._left(j) + self.column / 2 for j in range(len(texts))]
        self._write(texts, middles, self.column, ha="center", color="0.35")

    def pictures(self, pictures: Sequence[Tensor | None]) -> None:
        """Pictures side by side, (3,h,w) uint8, pixel for pixel; where there is None the column stays empty."""
        for j, picture in enumerate(pictures):
            if picture is not None:
                left = self._left(j) + (self.column - picture.shape[-1]) // 2
                self._parts.append(
                    partial(self._draw_picture, picture.permute(1, 2, 0).cpu().numpy(), left, self.height)
                )
        self.height += GAP + max((picture.shape[-2] for picture in pictures if picture is not None), default=0)

    def bar(self, share: float) -> None:
        """A bar below a title, across the page, filled from the left to a share between 0 and 1."""
        self._parts.append(partial(self._draw_bar, share, self.height))
        self.height += BAR + GAP

    def chart(self, height: int, draw: Callable[[Axes], None]) -> None:
        """A chart across the page; ``draw`` fills its axes, whose ticks and labels have room on the left and below."""
        self._parts.append(partial(self._draw_chart, draw, self.height, height))
        self.height += height

    def gap(self) -> None:
        """Some air."""
        self.height += GAP

    def figure(self) -> Figure:
        """The page as it is by now."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        for draw in self._parts:
            draw(figure)
        return figure

    def _left(self, column: int) -> int:
        return GAP + column * (self.column + GAP)

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """From pixels, counted from the upper left, to matplotlib's shares of the page, from the lower left."""
        bottom = 1 - (top + height) / self.height
        return left / self.width, bottom, width / self.width, height / self.height

    def _write(self, texts: Sequence[str], places: Sequence[float], width: float, **style: Any) -> None:
        style |= {"va": "bottom", "fontsize": FONT_POINTS, "parse_math": False}
        wrapped = [self._wrapped(text, width, style) for text in texts]
        height = LINE + NEXT_LINE * max(text.count("\n") for text in wrapped)
        for text, x in zip(wrapped, places, strict=True):
            self._parts.append(partial(self._draw_text, text, x, self.height + height - BELOW_TEXT, style))
        self.height += height

    def _wrapped(self, text: str, width: float, style: Mapping[str, Any]) -> str:
        """The text on lines that fit the width; where it has lines already, each of them is kept."""
        return "\n".join(wrapped for line in text.splitlines() for wrapped in self._lines(line, width, style))

    def _lines(self, line: str, width: float, style: Mapping[str, Any]) -> list[str]:
        characters, lines = len(line), [line]
        while characters > 1 and (widest := max((self._measure(each, style) for each in lines), default=0)) > width:
            characters = min(characters - 1, int(characters * max(0.5, width / widest)) + 1)
            lines = textwrap.wrap(line, characters)
        return lines

    def _measure(self, text: str, style: Mapping[str, Any]) -> float:
        return self._ruler.text(0, 0, text, **style).get_window_extent().width

    def _draw_text(self, text: str, x: float, y: float, style: Mapping[str, Any], figure: Figure) -> None:
        left, bottom, _, _ = self._box(x, y, 0, 0)
        figure.text(left, bottom, text, **style)

    def _draw_picture(self, pixels: Any, left: float, top: float, figure: Figure) -> None:
        height, width = pixels.shape[:2]
        axes = figure.add_axes(self._box(left, top, width, height))
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="nearest", aspect="auto", origin="upper")

    def _draw_bar(self, share: float, top: float, figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        full = self.width - 2 * GAP
        for width, color in ((full, "0.9"), (full * share, "tab:blue")):
            left, bottom, *sides = self._box(GAP, top, width, BAR)
            figure.add_artist(Rectangle((left, bottom), *sides, color=color, linewidth=0))

    def _draw_chart(self, draw: Callable[[Axes], None], top: float, height: float, figure: Figure) -> None:
        left, right, below, above = MARGINS
        box = self._box(left, top + above, self.width - left - right, height - above - below)
        axes = figure.add_axes(box)
        axes.tick_params(labelsize=FONT_POINTS - 1)
        draw(axes)


def lines_of(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """The items on lines of about equal length, none longer than ``most``."""
    lines = math.ceil(len(items) / most)
    length = math.ceil(len(items) / lines)
    return [items[start : start + length] for start in range(0, len(items), length)]
