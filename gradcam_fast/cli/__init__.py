"""The command ``gradcam-fast``: from whatever happens to one line of message and an exit code.

Knows nothing of options (``arguments.py``) or of what the commands do (``commands.py``).
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from .arguments import parser
from .commands import COMMANDS
from .messages import complain

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (None: the process's own) and return its exit status."""
    options = parser(COMMANDS).parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
            unreadable: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough; what is still buffered must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if options.debug:
            raise
        complain(" ".join(str(error).split()) or type(error).__name__)
        return 2
    return 1 if unreadable else 0
