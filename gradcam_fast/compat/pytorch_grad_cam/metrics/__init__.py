"""Metrics: what the model answers once parts of the image are dimmed or removed by a map."""

import sys
from typing import Any

from ...names import missing_name


def __getattr__(name: str) -> Any:
    raise AttributeError(missing_name(sys.modules[__name__], name))
