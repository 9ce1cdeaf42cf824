"""A matplotlib figure that shows itself: in notebooks without ``%matplotlib inline``, and by ``show()``."""

from __future__ import annotations

from matplotlib.figure import Figure

from .figure_files import png_of, show_figure

__all__ = ["ShownFigure"]


class ShownFigure(Figure):
    """A figure at its own size in pixels. matplotlib's own ``show`` only works for figures of pyplot."""

    def show(self, warn: bool = True) -> None:
        """Show the figure below the cell of a notebook, else in the program that shows pictures on this machine."""
        show_figure(self)

    def _repr_png_(self) -> bytes:
        return png_of(self)

    def __repr__(self) -> str:
        """The size, and what is written on it."""
        width, height = (int(side) for side in self.bbox.size)
        titles = ", ".join(text.get_text().split("\n")[0] for text in self.texts[:4])
        return f"<Figure of {width} x {height} pixels: {titles}>"
