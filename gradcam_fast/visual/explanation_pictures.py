"""Pictures of an explanation as PIL images and bytes: overlays, the figure that is shown and saved, a small summary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .overlay import overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..explanation import Explanation

__all__ = ["is_picture", "overlays", "picture", "save_picture", "show", "small_png"]

SUFFIXES = (".png", ".jpg", ".jpeg")

# Notebooks ask for a picture in several formats, one after the other.
_small: WeakKeyDictionary[Explanation, bytes] = WeakKeyDictionary()


def overlays(explanation: Explanation, photos: Any, **options: Any) -> Any:
    """The overlays as PIL images: one, or a list for several images, of lists for several classes.

    Raises:
        ValueError: no photos, or heatmaps that do not fit them.
    """
    from PIL import Image

    from .figures.explanation_figures import as_photos

    shown = as_photos(photos, explanation)
    blends = overlay(shown, explanation.heatmap.cpu(), box=explanation.boxes, signed=explanation.signed, **options)
    images = [
        [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in blend.reshape(-1, *blend.shape[-3:])]
        for blend in blends
    ]
    of_images: list[Any] = images if explanation.heatmap.dim() > 3 else [maps[0] for maps in images]
    return of_images[0] if len(of_images) == 1 else of_images


def picture(explanation: Explanation, photos: Any = None, **options: Any) -> Figure:
    """The figure of an explanation: photo, heatmap and overlay in a row for each class; maps alone without photos."""
    from . import figures

    if photos is None and explanation.photos is None:
        return figures.summary(explanation, **options)
    return figures.explained(photos, explanation, **options)


def save_picture(explanation: Explanation, path: str | os.PathLike[str], **options: Any) -> None:
    """Write the figure of an explanation."""
    from . import figures

    figures.save(picture(explanation, **options), path)


def show(explanation: Explanation, **options: Any) -> None:
    """Show the figure of an explanation, in the notebook or in a window."""
    from .figures.figure_files import show_figure

    show_figure(picture(explanation, **options))


def small_png(explanation: Explanation) -> bytes | None:
    """The summary as the bytes of a PNG file; None where it cannot be drawn, because a notebook asks for it unasked."""
    if explanation not in _small:
        try:
            from . import figures
            from .figures.figure_files import png_of
        except ImportError:
            return None
        if not len(explanation.heatmap) or explanation.heatmap.dim() not in (3, 4):
            return None
        _small[explanation] = png_of(figures.summary(explanation))
    return _small[explanation]


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a path has the suffix of a picture."""
    return Path(path).suffix.lower() in SUFFIXES
