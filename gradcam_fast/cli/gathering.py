"""From the paths that a user names to photo files: folders are searched, patterns are matched.

Knows nothing of what is in a file, except that pictures of this package are no photos.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..visual.figures import is_own

__all__ = ["SUFFIXES", "Photo", "gather"]

SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


@dataclass(frozen=True)
class Photo:
    """A photo file, and the folder below the folder searched (or ``.``) where it was found."""

    path: Path
    place: Path = Path()


def gather(paths: Sequence[str | os.PathLike[str]], out: Path, complain: Callable[[str], None]) -> list[Photo]:
    """The photos that ``paths`` name, in that order; those of a folder sorted, with all that is below it.

    In folders only the usual suffixes of photos count (`SUFFIXES`), hidden files do not, nor do pictures of this
    package or anything in ``out``. What is named one by one, or by a pattern that the shell left alone, is taken
    as it is.

    Args:
        complain: told of each folder without photos.
    """
    photos: list[Photo] = []
    for each in paths:
        name = os.fspath(each)
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.lexists(name) else []
        for path in map(Path, matches or [name]):
            if not path.is_dir():
                photos.append(Photo(path))
                continue
            found = [Photo(file, file.parent.relative_to(path)) for file in _below(path, out.resolve())]
            photos += found
            if not found:
                complain(f"{path}: no photos in this folder")
    return photos


def _below(folder: Path, out: Path) -> Iterator[Path]:
    inside = folder.resolve() == out  # pictures beside the photos: then only the pictures are left out
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (inside or Path(root, name).resolve() != out)
        )
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if "-gradcam" not in name or not is_own(path):
                yield path
