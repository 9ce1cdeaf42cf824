"""Explanations of many photos on many machines: Arrow in, Arrow out.

`Explain` is what one process does with a batch of rows, in Ray Data, Spark, Dask or Daft.
"""

from __future__ import annotations

from .explain import Explain

__all__ = ["Explain"]
