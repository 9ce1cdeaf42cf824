"""The progress of methods that run the model many times, told to a callable or shown on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["ProgressReport"]


class ProgressReport:
    """Counts runs, and tells how many of how many are done.

    Args:
        told: called with both numbers after each chunk; True shows them on standard error; False tells nobody.
        title: what is shown before the numbers.
        total: how many runs there will be.
    """

    def __init__(self, told: Callable[[int, int], object] | bool, title: str, total: int) -> None:
        self.told, self.title, self.total = told, title, total
        self.done = 0

    def advance(self, count: int) -> None:
        """Count runs that are done, or that were found not to be needed."""
        self.done += count
        if callable(self.told):
            self.told(self.done, self.total)
        elif self.told:
            end = "\n" if self.done >= self.total else ""
            print(f"\r{self.title}: {self.done} of {self.total}", end=end, file=sys.stderr, flush=True)
