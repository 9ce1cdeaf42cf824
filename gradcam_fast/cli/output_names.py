"""The name of each photo's files in the output folder: a name belongs to one photo for the life of the folder."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .picture_files import photo_of

__all__ = ["OutputNames"]

_SUFFIX = re.compile(r"(\.overlay(-\d+)?)?\.(jpg|png|npy)$")


class OutputNames:
    """Gives each photo a name of its own in the folder ``out``.

    A number follows the wanted name where two photos would share a file, also on file systems that ignore case. No file
    replaces a photo of this run, a file of another photo, or a file that this package did not write.

    Args:
        photos: the photos of this run.
        suffixes: of the files that this run writes for each photo.
        owners: the path of the photo that has a name already, by the name in lower case.
    """

    def __init__(
        self, photos: Iterable[Path], out: Path, suffixes: Sequence[str], owners: Mapping[str, str] | None = None
    ) -> None:
        self._out, self._suffixes, self._owners = out, suffixes, owners or {}
        self._names: set[str] = set()
        self._files = {_key(photo) for photo in photos}
        self._existing: dict[Path, dict[str, list[Path]]] = {}

    def claim(self, photo: Path, wanted: str) -> str:
        """The name of a photo's files from now on: ``wanted``, or this with the first number that is free."""
        for name in _numbered(wanted):
            files = [self._out / f"{name}{suffix}" for suffix in self._suffixes]
            keys = set(map(_key, files))
            if (
                name.casefold() not in self._names
                and not keys & self._files
                and self._owners.get(name.casefold(), str(photo)) == str(photo)
                and all(self._may_stand_beside(file, keys, photo) for file in self._files_named(name))
            ):
                break
        self._names.add(name.casefold())
        self._files |= keys
        return name

    def _may_stand_beside(self, file: Path, written: set[tuple[str, str]], photo: Path) -> bool:
        # A file that this run does not write is in the way only if it is another photo's.
        owner = photo_of(file)
        return owner == str(photo) or (owner is None and _key(file) not in written)

    def _files_named(self, name: str) -> list[Path]:
        """The files in ``out`` that may be of this name, whatever their format."""
        folder = (self._out / name).parent
        if folder not in self._existing:
            self._existing[folder] = _files_by_name(folder)
        return self._existing[folder].get(Path(name).name.casefold(), [])


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    try:
        names = os.listdir(folder)
    except OSError:  # it does not exist yet, or writing to it will say what is wrong
        names = []
    for file in names:
        # "x.overlay.jpg" may be an overlay of "x", or the panels of "x.overlay".
        for name in {_SUFFIX.sub("", file), os.path.splitext(file)[0]}:
            files.setdefault(name.casefold(), []).append(folder / file)
    return files


def _numbered(wanted: str) -> Iterator[str]:
    yield wanted
    for number in itertools.count(2):
        yield f"{wanted}-{number}"


def _key(path: Path) -> tuple[str, str]:
    return _resolved(path.parent), path.name.casefold()


@functools.lru_cache(maxsize=4096)
def _resolved(folder: Path) -> str:
    return str(folder.resolve()).casefold()
