"""Under which names the pictures of each photo are kept: never two under one, never in place of a file not ours.

Knows nothing of what is written there.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from ..visual.figures import is_own

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .gathering import Photo

__all__ = ["names_for"]


def names_for(photos: Sequence[Photo], out: Path, suffixes: Sequence[str]) -> list[str]:
    """For each photo the path in ``out``, without suffix, of its files: ``<place>/<stem>-gradcam``, numbered where
    names meet.

    The tree of a folder that was searched is kept below ``out``. No two photos share a file, also where the file system
    ignores case, and none replaces a photo or a picture that this package did not write.
    """
    taken = {_key(photo.path) for photo in photos}
    names = []
    for photo in photos:
        for name in _candidates(photo):
            files = [out / f"{name}{suffix}" for suffix in suffixes]
            keys = {_key(file) for file in files}
            if not keys & taken and all(map(_replaceable, files)):
                break
        taken |= keys
        names.append(name)
    return names


def _candidates(photo: Photo) -> Iterator[str]:
    base = (photo.place / f"{photo.path.stem}-gradcam").as_posix()
    yield base
    for number in itertools.count(2):
        yield f"{base}-{number}"


def _replaceable(path: Path) -> bool:
    # Maps bear no mark; what has their name is taken for one.
    return not path.exists() or path.suffix == ".npy" or is_own(path)


def _key(path: Path) -> tuple[str, str]:
    return _resolved(path.parent), path.name.casefold()


@functools.lru_cache(maxsize=4096)
def _resolved(folder: Path) -> str:
    return str(folder.resolve()).casefold()
