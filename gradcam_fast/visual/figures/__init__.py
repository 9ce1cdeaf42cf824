"""Figures drawn with matplotlib (the extra ``viz``), from photos, maps and explanations.

``panels``, ``explained``, ``summary`` and ``classes`` show explanations; ``layers``, ``relu`` and ``channels`` show
what layers compute; ``gallery`` shows any pictures in rows. ``save`` writes a figure to a file.
"""

from .explanation_figures import class_titles, classes, explained, panels
from .figure_files import is_own, save
from .gallery_figure import gallery
from .layer_figures import channels, layers, relu
from .summary_figure import summary

__all__ = [
    "channels", "class_titles", "classes", "explained", "gallery", "is_own", "layers", "panels", "relu", "save",
    "summary",
]  # fmt: skip
