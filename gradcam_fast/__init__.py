"""Explanations of what vision models look at, at the price of the prediction.

``explain(model, images)`` returns the prediction and, per image and class, a Grad-CAM heatmap at full resolution.
"""

from importlib import import_module
from types import ModuleType

from . import targets
from .explainer import Explainer, explain
from .explanation import Explanation
from .ops import reference
from .ops.backend import backend
from .ops.cam import cam
from .visual.overlay import overlay

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    # Imported when first asked for: what they stand on need not be installed.
    if name == "figures":
        return import_module(".visual.figures", __name__)
    if name == "features":
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Explainer", "Explanation", "backend", "cam", "explain", "overlay", "reference", "targets"]
