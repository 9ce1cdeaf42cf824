"""Where the command's messages go: results to standard output, complaints and progress to standard error.

Knows nothing of what is told.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from .report import Report

__all__ = ["complain", "progress_of", "report_of"]


def complain(message: str) -> None:
    """Say on standard error, in a line, what went wrong."""
    print(f"gradcam-fast: {message}", file=sys.stderr)


@contextmanager
def report_of(options: argparse.Namespace) -> Iterator[Report]:
    """The report of a run over photos, as talkative as the options say; an interruption is told."""
    from .report import Report

    told = False if options.quiet else True if options.verbose else None
    with Report(verbose=told, bar=options.progress, summary=False if options.quiet else None) as report:
        yield report


@contextmanager
def progress_of(options: argparse.Namespace, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function to be told how many are done, of how many (None: unknown); it draws a bar if the options want one."""
    from .report import ProgressBar

    wanted = sys.stderr.isatty() if options.progress is None else options.progress
    bar = ProgressBar(unit) if wanted else None
    try:
        yield bar.update if bar else lambda done, total: None
    finally:
        if bar:
            bar.close()
