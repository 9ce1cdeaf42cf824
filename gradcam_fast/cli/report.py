"""What a run tells while it goes: results of few photos, a progress bar over many, complaints, a line at the end.

Knows nothing of how photos are explained.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .answers import shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .answers import Answer

__all__ = ["FEW", "Report", "most_probable", "progress_bar"]

# Up to so many photos each one is told of.
FEW = 16


class Report:
    """Tells of one run over photos.

    Args:
        tell: takes lines of results, as ``print``.
        complain: takes one-line messages about what went wrong.
        each: whether every photo is told of; None: if they are few.
        bar: whether there is a progress bar on standard error; None: if that is a terminal and photos are many.
        summary: whether the last line says how many there were; None: if photos are many, or all were done before.

    Attributes:
        unreadable: how many photos were skipped so far.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        complain: Callable[[str], None],
        *,
        each: bool | None = None,
        bar: bool | None = None,
        summary: bool | None = None,
    ) -> None:
        self._tell, self._complain = tell, complain
        self._each, self._wants_bar, self._summary = each, bar, summary
        self._bar: Any = None
        self.done = self.unreadable = self._before = 0

    def begin(self, todo: int, photos: int) -> None:
        """Say that ``todo`` of ``photos`` photos are about to be explained."""
        many = photos > FEW
        self._before = photos - todo
        self._each = not many if self._each is None else self._each
        self._summary = (many or todo == 0 < photos) if self._summary is None else self._summary
        if self._wants_bar or (self._wants_bar is None and many and sys.stderr.isatty()):
            self._bar = progress_bar(todo, "photo")

    def explained(self, photo: Path, answer: Answer, files: list[Path]) -> None:
        """Tell of a photo that was explained, and of the files that were written of it."""
        self.done += 1
        if self._each:
            lines = [str(photo), most_probable(answer)]
            lines += [f"  {'map' if file.suffix == '.npy' else 'picture'}: {file}" for file in files]
            self._aside(self._tell, "\n".join(lines) + "\n")
        self._advance()

    def skipped(self, reason: Exception) -> None:
        """Complain of a photo that could not be read or written; ``reason`` names it."""
        self.unreadable += 1
        self._aside(self._complain, f"{reason}; skipped")
        self._advance()

    def interrupted(self) -> None:
        """Say how far it came."""
        self.close()
        if self._summary:
            self._complain(f"interrupted after {self.done:,} photos; the same command with --resume goes on from there")

    def end(self, seconds: float, out: Path) -> None:
        """Sum up."""
        self.close()
        if not self._summary:
            return
        parts = [f"{self.done:,} photos explained in {_duration(seconds)}"]
        if self.done and seconds:
            parts[0] += f" ({self.done / seconds:.1f} a second)"
        if self.unreadable:
            parts.append(f"{self.unreadable:,} skipped")
        if self._before:
            parts.append(f"{self._before:,} had been done before")
        self._tell(f"{', '.join(parts)}; see {out}")

    def close(self) -> None:
        """Take the progress bar away; needed only where the end was not reached."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _aside(self, say: Callable[[str], None], message: str) -> None:
        if self._bar is None:
            say(message)
        else:
            with self._bar.external_write_mode():
                say(message)


def most_probable(answer: Answer) -> str:
    """The most probable classes of one photo as lines of text."""
    return "\n".join(
        f"  {shown(probability, answer.scores[0]):>7}  {name} ({number})" for name, number, probability in answer.best
    )


def progress_bar(total: int | None, unit: str) -> Any:
    """A bar on standard error with items a second and the time left; None where tqdm is not installed."""
    with suppress(ImportError):
        from tqdm import tqdm

        return tqdm(total=total, unit=f" {unit}s", dynamic_ncols=True, smoothing=0.1, file=sys.stderr)
    return None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
