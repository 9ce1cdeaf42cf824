"""Explanations of what vision models look at, at the price of the prediction.

``explain(model, images)`` returns the prediction and, per image and class, a Grad-CAM heatmap at full resolution.
"""

from . import reference, targets
from .backend import backend
from .explainer import Explainer, explain
from .explanation import Explanation
from .ops import cam
from .overlay import overlay

__version__ = "0.1.0"

__all__ = ["Explainer", "Explanation", "backend", "cam", "explain", "overlay", "reference", "targets"]
