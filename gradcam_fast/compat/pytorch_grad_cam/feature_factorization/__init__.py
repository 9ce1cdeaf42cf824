"""Deep feature factorisation."""

import sys
from typing import Any

from ...names import missing_name


def __getattr__(name: str) -> Any:
    raise AttributeError(missing_name(sys.modules[__name__], name))
