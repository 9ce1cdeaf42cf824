"""One run at a time writes to an output folder; a crash releases the folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PART_SUFFIX", "lock_folder", "remove_parts"]

# Of files that are being written. They are hidden, so that readers of a folder ignore them.
PART_SUFFIX = ".gradcam-part"


@contextmanager
def lock_folder(out: Path) -> Iterator[bool]:
    """Keep other processes and threads from explaining or rendering into ``out``, and make the folder if it is missing.

    The operating system holds the lock on the folder itself: no file is made, and the end of the process releases it,
    however it ends. Where there are no such locks (Windows, some network file systems), nothing is refused.

    Yields whether the folder is locked.

    Raises:
        RuntimeError: another run writes to the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except BlockingIOError:
            raise RuntimeError(
                f"--out: another gradcam-fast is writing to {out}; wait until it ends, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def remove_parts(folders: Iterable[Path]) -> None:
    """Remove the half-written files of a process that was killed; the folders must be locked."""
    for folder in folders:
        for part in folder.glob(f".*{PART_SUFFIX}"):
            part.unlink(missing_ok=True)
