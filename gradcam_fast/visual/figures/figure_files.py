"""Writes figures to files, with a mark by which a later run recognises pictures of this package."""

from __future__ import annotations

import os
import stat
import sys
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure
    from PIL.Image import Image as PillowImage

__all__ = ["MARK", "SOFTWARE_TAG", "is_own", "png_of", "save", "show_figure"]

# The Exif tag "Software" of every file holds this mark. A later run replaces only files that have the mark.
MARK = "gradcam_fast"
SOFTWARE_TAG = 0x0131


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure at its own size, in the format of the path's suffix: ``.png``, or ``.jpg`` of quality 90.

    Args:
        figure: a matplotlib figure.
        path: the file, which is replaced if it exists.

    Raises:
        ValueError: a suffix that Pillow does not support.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from gradcam_fast import figures
        >>> figure = figures.gallery(torch.zeros(1, 3, 60, 80, dtype=torch.uint8), ["black"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figures.save(figure, f"{folder}/black.png")
        ...     figures.is_own(f"{folder}/black.png")
        True
    """
    from PIL import Image

    exif = Image.Exif()
    exif[SOFTWARE_TAG] = MARK
    _image_of(figure).save(path, quality=90, exif=exif)


def png_of(figure: Figure) -> bytes:
    """A figure at its own size as the bytes of a PNG file."""
    file = BytesIO()
    _image_of(figure).save(file, "PNG")
    return file.getvalue()


def show_figure(figure: Figure) -> None:
    """Show a figure: below the cell of a notebook, else in the program that shows pictures on this machine."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import Image, display

        display(Image(png_of(figure)))
    else:
        _image_of(figure).show()


def _image_of(figure: Figure) -> PillowImage:
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB")


def is_own(path: str | PathLike[str]) -> bool:
    """Tell whether the file at ``path`` is a picture that this package wrote."""
    from PIL import Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            return False
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            return bool(picture.getexif().get(SOFTWARE_TAG) == MARK)
    except Exception:  # damaged files raise everything from SyntaxError to struct.error
        return False
