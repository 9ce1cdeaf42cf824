"""The command ``gradcam-fast``: runs a subcommand, prints errors in one line, and returns the exit code."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..exceptions import LibraryMissing
from .console import complain

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (None: the process's own) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--library"]:
        return _print_library(*arguments[1:])
    for package in ("click", "rich"):
        if find_spec(package) is None:
            complain(f"the command line needs {package}, which is not installed; run pip install 'gradcam-fast[cli]'")
            return 2
    import click

    from .commands import gradcam_fast

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
            with gradcam_fast.make_context("gradcam-fast", arguments) as context:
                unreadable: int = gradcam_fast.invoke(context)
    except click.exceptions.Exit as finished:  # --help and --version
        return finished.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        command = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        complain(f"{message[0].lower()}{message[1:]}{command}")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of standard output has closed it. Python must not complain when it writes what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--debug" in arguments:
            raise
        complain(" ".join(str(error).split()) or type(error).__name__)
        return 2
    return 1 if unreadable else 0


def _print_library(device: str = "cpu", *_: str) -> int:
    """Print the path of the compiled operator; needs neither click nor rich, because build scripts ask for it."""
    from ..ops.backend import library_path

    try:
        print(library_path(device))
    except (ValueError, LibraryMissing) as error:
        complain(f"--library: {error}")
        return 2
    return 0
