"""Explanations of many photos on many machines: Arrow in, Arrow out.

`Explain` is what one process does with a batch of rows, in Ray Data, Spark, Dask or Daft. `explain_photos` runs it with
Ray over a list of photos, and writes the table that ``gradcam-fast explain --format parquet`` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .explain import Explain

if TYPE_CHECKING:
    from .ray_engine import Actors, explain_photos, explained
    from .ray_sink import PartNames, TableSink

__all__ = ["Actors", "Explain", "PartNames", "TableSink", "explain_photos", "explained"]

# These need Ray, which the other engines do without.
_WITH_RAY = {
    "Actors": ".ray_engine",
    "PartNames": ".ray_sink",
    "TableSink": ".ray_sink",
    "explain_photos": ".ray_engine",
    "explained": ".ray_engine",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_RAY:
        from importlib import import_module

        return getattr(import_module(_WITH_RAY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
