"""Figures as files, and which files are ours.

Knows nothing of what the figures show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

__all__ = ["is_own", "save"]

# Written into every picture as its Exif "Software", so that a later run knows what it may replace.
MARK = "gradcam_fast"
SOFTWARE = 0x0131


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
    exif[SOFTWARE] = MARK
    Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB").save(path, quality=90, exif=exif)


def is_own(path: str | PathLike[str]) -> bool:
    """Whether the file at ``path`` is a picture of this package."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return bool(picture.getexif().get(SOFTWARE) == MARK)
    except OSError:
        return False
