"""Warnings that point to the line of the caller's code, however deep in the package they arise; and the log.

The log is Python's, under the name ``gradcam_fast``, and silent until the application configures it. Warnings go there,
too.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .recent import Recent

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LOG", "warn_caller"]

_PACKAGE = __name__.partition(".")[0]

LOG = logging.getLogger(_PACKAGE)
LOG.addHandler(logging.NullHandler())

_GIVEN: WeakKeyDictionary[nn.Module, Recent[str, bool]] = WeakKeyDictionary()


def warn_caller(message: str, category: type[Warning] = UserWarning, *, model: nn.Module | None = None) -> None:
    """Warn with the location of the first caller outside this package; once, if the warning is about a ``model``."""
    if model is not None:
        given = _GIVEN.setdefault(model, Recent())
        if message in given:
            return
        given[message] = True
    LOG.warning("%s", message)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
