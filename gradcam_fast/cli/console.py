"""What the command prints: the results of few photos, a progress bar over many, errors, and a line at the end.

Results go to standard output; errors and the progress bar go to standard error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..probabilities import confidence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TextIO

    from ..pipeline.results import PhotoResult

__all__ = ["FEW_PHOTOS", "ProgressBar", "Report", "complain", "printable", "shorten", "tell"]

# Up to this number of photos, the result of each is printed.
FEW_PHOTOS = 16


# The names of classes come from files, and may be of any length.
LONGEST_NAME = 120


def complain(message: str) -> None:
    """Print an error or a note on standard error."""
    print(f"gradcam-fast: {printable(message, sys.stderr)}", file=sys.stderr)


def tell(message: str) -> None:
    """Print a result on standard output."""
    print("\n".join(printable(line, sys.stdout) for line in message.split("\n")))


def printable(text: str, stream: TextIO | None = None) -> str:
    """``text`` with every character escaped that would steer a terminal, or that ``stream`` cannot encode.

    Example:
        >>> printable("caf\u00e9\x1b[31m.jpg")
        'caf\u00e9\\\\x1b[31m.jpg'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def shorten(name: str) -> str:
    """The name of a class, cut where it is too long to be read in a title or a line.

    Example:
        >>> shorten("tabby"), len(shorten("a" * 100_000))
        ('tabby', 120)
    """
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


class ProgressBar:
    """A bar on standard error, with the speed, the time elapsed and the time left.

    Args:
        unit: what is counted, in the plural.
        total: how many there are, or None if unknown.
    """

    def __init__(self, unit: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._unit, self._terminal = unit, sys.stderr.isatty()
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            # With --progress the bar is also drawn if standard error is a file, once for each update.
            console=Console(file=sys.stderr, force_terminal=True, color_system="auto" if self._terminal else None),
            auto_refresh=self._terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=total, rate=f"0.0 {unit}/s")
        self._progress.start()

    def update(self, done: int, total: int | None) -> None:
        """Show how many are done, of how many (None: unknown)."""
        task = self._progress.tasks[0]
        speed = done / task.elapsed if task.elapsed else 0
        rate = f"{speed:.1f} {self._unit}/s"
        self._progress.update(self._task, completed=done, total=total, rate=rate, refresh=not self._terminal)

    def print_above(self, say: Callable[[str], None], message: str) -> None:
        """Remove the bar, call ``say(message)``, and draw the bar again."""
        self._progress.live.transient = True
        self._progress.stop()
        say(message)
        self._progress.live.transient = False
        self._progress.start()

    def close(self) -> None:
        """Draw the bar a last time, and leave it."""
        self._progress.stop()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Report:
    """Reports one run over photos; as a context manager, it closes the progress bar and reports an interruption.

    Args:
        verbose: whether every photo is reported; None: only if there are few.
        bar: whether a progress bar is shown; None: only if standard error is a terminal and there are many photos.
        summary: whether a line at the end says how many photos were explained; None: only if there are many photos, or
            all were explained by an earlier run.
        tell: prints results.
        complain: prints errors.

    Attributes:
        done: how many photos were explained so far.
        unreadable: how many photos were skipped so far.
    """

    def __init__(
        self,
        *,
        verbose: bool | None = None,
        bar: bool | None = None,
        summary: bool | None = None,
        tell: Callable[[str], None] = tell,
        complain: Callable[[str], None] = complain,
    ) -> None:
        self._tell, self._complain = tell, complain
        self._verbose, self._wants_bar, self._summary = verbose, bar, summary
        self._bar: ProgressBar | None = None
        self.done = self.unreadable = self._todo = self._earlier = 0

    def __enter__(self) -> Report:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._close_bar()
        if failed is KeyboardInterrupt and self._summary:
            self._complain(f"interrupted after {photo_count(self.done)}; run the same command with --resume to go on")

    def begin(self, todo: int, photos: int) -> None:
        """Note that ``todo`` of ``photos`` photos are about to be explained."""
        many = photos > FEW_PHOTOS
        self._todo, self._earlier = todo, photos - todo
        self._verbose = not many if self._verbose is None else self._verbose
        self._summary = (many or todo == 0 < photos) if self._summary is None else self._summary
        if self._wants_bar or (self._wants_bar is None and many and sys.stderr.isatty()):
            self._bar = ProgressBar("photos", todo)

    def photo_done(self, photo: Path | str, result: PhotoResult, files: list[Path]) -> None:
        """Report a photo that was explained, and the files that were written for it."""
        self.done += 1
        if self._verbose:
            lines = [str(photo)]
            lines += [
                f"  {confidence(probability, score):>7}  {shorten(name)} ({number})"
                for name, number, probability, score in result.best
            ]
            lines += [f"  {'map' if file.suffix == '.npy' else 'picture'}: {file}" for file in files]
            lines = list(map(printable, lines))
            self._print(self._tell, "\n".join(lines) + "\n")
        self._advance()

    def photo_skipped(self, reason: Exception) -> None:
        """Report a photo that could not be explained; ``reason`` begins with its path."""
        self.unreadable += 1
        self._print(self._complain, printable(f"{reason}; skipped"))
        self._advance()

    def end(self, seconds: float, out: Path) -> None:
        """Print how many photos there were and how long they took."""
        self._close_bar()
        if not self._summary:
            return
        line = f"{photo_count(self.done)} explained in {_duration(seconds)}"
        if self.done and seconds:
            line += f" ({self.done / seconds:.1f} per second)"
        if self.unreadable:
            line += f", {self.unreadable:,} skipped"
        if self._earlier:
            line += f", {self._earlier:,} already done"
        self._tell(f"{line}; see {out}")

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update(self.done + self.unreadable, self._todo)

    def _print(self, say: Callable[[str], None], message: str) -> None:
        if self._bar is None:
            say(message)
        else:
            self._bar.print_above(say, message)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def photo_count(count: int) -> str:
    """A number of photos, with the noun.

    Example:
        >>> photo_count(1), photo_count(2048)
        ('1 photo', '2,048 photos')
    """
    return "1 photo" if count == 1 else f"{count:,} photos"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
