"""Methods beyond the op's own: what they need of a capture, and how its maps become the maps or weights of the op.

:func:`gradcam_fast.explain` takes their names as ``method=``. Formulas, papers and costs are in ``docs/methods.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..ops.arguments import METHODS as CAM_METHODS

if TYPE_CHECKING:
    from .eigen import first_component as first_component

__all__ = ["METHODS", "first_component"]

# The names of all methods: those of the op, and those of this room by the module that has them.
_MODULES = {
    "ablation": ".ablation",
    "reciprocam": ".reciprocam",
    "scorecam": ".scorecam",
    "eigencam": ".eigen",
    "eigengradcam": ".eigen",
}
METHODS = (*CAM_METHODS, *_MODULES)


def method_module(name: str) -> Any:
    """The module of one of this room's methods, imported when first asked for; None for a method of the op."""
    return import_module(_MODULES[name], __name__) if name in _MODULES else None


def __getattr__(name: str) -> Any:
    if name == "first_component":
        from .eigen import first_component

        return first_component
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
