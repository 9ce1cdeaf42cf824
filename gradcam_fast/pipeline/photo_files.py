"""Photo files, found in folders and by patterns, and the names that their pictures get."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..visual.figures import is_own

__all__ = ["PhotoFile", "find_photos", "wanted_name"]

PHOTO_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
# File systems take 255 bytes in a name. The rest is for a number and for the longest suffix, ".overlay-1000.jpg".
_LONGEST_STEM = 200


@dataclass(frozen=True)
class PhotoFile:
    """A photo's file, and its subfolder (or ``.``) in the folder that was searched."""

    path: Path
    subfolder: Path = Path()


def find_photos(
    paths: Sequence[str | os.PathLike[str]], out: Path, report_empty: Callable[[str], None]
) -> list[PhotoFile]:
    """The photos that ``paths`` name, in the order given; a folder gives all photos in it and below it, sorted.

    In folders, only files with the usual suffixes of photos count (`PHOTO_SUFFIXES`). Hidden files, pictures that this
    package wrote and everything in ``out`` are left out. A file named directly, or by a pattern, is always taken.

    Args:
        report_empty: called with a message for each folder without photos.
    """
    photos: list[PhotoFile] = []
    for path_or_pattern in paths:
        name = os.fspath(path_or_pattern)
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.lexists(name) else []
        for path in map(Path, matches or [name]):
            if not os.path.isdir(path):
                photos.append(PhotoFile(path))
                continue
            inside = [PhotoFile(file, file.parent.relative_to(path)) for file in _photos_below(path, out.resolve())]
            photos += inside
            if not inside:
                report_empty(f"{path}: no photos in this folder")
    return photos


def _photos_below(folder: Path, out: Path) -> Iterator[Path]:
    # If ``out`` is the folder of the photos, only the pictures in it are left out, not the whole folder.
    out_has_photos = folder.resolve() == out
    for root, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and (out_has_photos or Path(root, name).resolve() != out)
        )
        for name in sorted(files):
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in PHOTO_SUFFIXES:
                continue
            if "-gradcam" not in name or not is_own(path):
                yield path


def wanted_name(photo: PhotoFile) -> str:
    """The path of a photo's files in the output folder, without suffix: ``<subfolder>/<stem>-gradcam``.

    The name is valid text: a byte that is not UTF-8 becomes ``%`` and two hexadecimal digits. A stem that is too long
    for a file system is cut and gets a hash of the photo's path.

    Example:
        >>> wanted_name(PhotoFile(Path("cats/tom.jpg"), Path("cats")))
        'cats/tom-gradcam'
    """
    stem = _as_text(photo.path.stem)
    if len(stem.encode()) > _LONGEST_STEM:
        digest = hashlib.sha256(os.fsencode(photo.path)).hexdigest()[:12]
        stem = f"{stem.encode()[: _LONGEST_STEM - 13].decode(errors='ignore')}-{digest}"
    return (Path(_as_text(photo.subfolder.as_posix())) / f"{stem}-gradcam").as_posix()


def _as_text(name: str) -> str:
    return "".join(f"%{ord(c) & 0xFF:02X}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in name)
