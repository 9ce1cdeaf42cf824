"""Shows where vision models look, in little more time than the prediction takes.

``explain(model, images)`` returns the prediction and, per image and class, a Grad-CAM heatmap at full resolution.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import exceptions, methods
from ._version import __version__ as __version__
from .explainer import Explainer, explain
from .explanation import Explanation
from .ops import reference
from .ops.backend import backend, library_path
from .ops.cam import cam
from .visual.overlay import overlay

if TYPE_CHECKING:
    from . import compat, compiled, features, layers, metrics, packages, targets
    from .packages import export, load
    from .preprocess import Preprocess
    from .visual import figures as figures

__all__ = [
    "Explainer",
    "Explanation",
    "Preprocess",
    "backend",
    "cam",
    "compat",
    "compiled",
    "exceptions",
    "explain",
    "export",
    "features",
    "layers",
    "library_path",
    "load",
    "methods",
    "metrics",
    "overlay",
    "packages",
    "reference",
    "targets",
]

# Imported when first asked for: modules, and what they hold.
# figures needs matplotlib, so it is not in __all__: `import *` must not fail without it.
_ON_DEMAND = {
    "compat": ".compat",
    "compiled": ".compiled",
    "features": ".features",
    "figures": ".visual.figures",
    "layers": ".layers",
    "metrics": ".metrics",
    "packages": ".packages",
    "targets": ".targets",
}
_MEMBERS_ON_DEMAND = {"Preprocess": ".preprocess", "export": ".packages", "load": ".packages"}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return import_module(_ON_DEMAND[name], __name__)
    if name in _MEMBERS_ON_DEMAND:
        return getattr(import_module(_MEMBERS_ON_DEMAND[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ON_DEMAND, *_MEMBERS_ON_DEMAND})
