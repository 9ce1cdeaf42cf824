"""The files written for one explained photo: their formats, and how they are written.

To add a format, add a line to `FORMATS` and its name to `commands.FORMAT_NAMES`.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

from ..exceptions import PhotoError
from ..pipeline.output_lock import PART_SUFFIX
from ..pipeline.pictures import blend, resize_heatmap
from ..probabilities import confidence
from ..visual.stamp import RANDOM_WEIGHTS, stamped
from .console import shorten
from .picture_files import encode, photo_of, read_note, with_note

if TYPE_CHECKING:
    from ..pipeline.results import LoadedPhoto, PhotoResult

__all__ = ["FORMATS", "PictureStyle", "UnwritableFileError", "are_complete", "suffixes", "write_files", "write_whole"]


@dataclass(frozen=True)
class PictureStyle:
    """How pictures look, and the comment stored in them.

    Attributes:
        colormap, alpha: as in :func:`gradcam_fast.overlay`.
        suffix: ``.jpg`` or ``.png``.
        quality: of JPEG, 1 to 100.
        longest: pictures have the photo's resolution, but no side is longer than this many pixels.
        note: how the maps were made; every picture carries this and the photo's path as its comment.
    """

    colormap: str = "jet"
    alpha: float = 0.5
    suffix: str = ".jpg"
    quality: int = 90
    longest: int = 1600
    note: dict[str, object] = field(default_factory=dict)

    @property
    def stamp(self) -> str:
        """What every picture says: so the maps of an untrained network are not taken for those of a trained one."""
        return RANDOM_WEIGHTS if RANDOM_WEIGHTS in str(self.note.get("model", "")) else ""

    def note_for(self, photo: Path | str, suffix: str) -> str:
        """The comment of a file of ``photo``: JSON in ASCII; arrays have no style."""
        names = () if suffix == ".npy" else ("colormap", "alpha", "quality", "longest")
        return json.dumps({"photo": str(photo), **self.note, **{name: getattr(self, name) for name in names}})


@dataclass(frozen=True)
class OutputFormat:
    """One kind of file: its suffixes for K classes, the function that makes its bytes, whether it shows the photo."""

    suffixes: Callable[[int, PictureStyle], list[str]]
    make: Callable[[LoadedPhoto, PhotoResult, PictureStyle, tuple[int, int]], Iterator[bytes]]
    shows_photo: bool = True


def suffixes(formats: tuple[str, ...], count: int, style: PictureStyle) -> list[str]:
    """The suffixes of all files of a photo, if ``count`` classes are explained."""
    return [suffix for name in formats for suffix in FORMATS[name].suffixes(count, style)]


def are_complete(out: Path, name: str, photo: Path, suffixes: list[str], style: PictureStyle) -> bool:
    """Whether all files of a photo exist, and were made from this photo in this style."""
    files = [out / f"{name}{suffix}" for suffix in suffixes]
    return all(file.exists() and read_note(file) == style.note_for(photo, file.suffix) for file in files)


class UnwritableFileError(PhotoError):
    """A file of one photo cannot be made; the message begins with the photo's path."""


# Errors of the operating system that are about one name. Others, such as a full disk, concern all files.
_ERRORS_OF_A_NAME = {
    errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip


def write_files(
    formats: tuple[str, ...],
    out: Path,
    photo: LoadedPhoto,
    result: PhotoResult,
    style: PictureStyle,
    size: tuple[int, int],
) -> list[Path]:
    """Write all files of one photo and return their paths; arrays have ``size`` (height, width).

    Raises:
        UnwritableFileError: a file cannot be drawn, has a name that the file system refuses, would be outside of
            ``out``, or would replace a file that is not of this photo.
        OSError: nothing can be written, as on a full disk.
    """
    written = []
    try:
        for output_format in map(FORMATS.__getitem__, formats):
            file_suffixes = output_format.suffixes(len(result.classes), style)
            for suffix in file_suffixes:
                _check_target(out, out / f"{photo.name}{suffix}", photo.path)
            for suffix, data in zip(file_suffixes, output_format.make(photo, result, style, size), strict=True):
                path = out / f"{photo.name}{suffix}"
                write_whole(path, data)
                written.append(path)
    except (UnwritableFileError, ImportError):
        raise
    except OSError as error:
        if error.errno not in _ERRORS_OF_A_NAME:
            raise
        raise UnwritableFileError(f"{photo.path}: {photo.name}: {error.strerror}") from error
    except Exception as error:  # of drawing and encoding, such as a JPEG that would be too wide
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnwritableFileError(f"{photo.path}: its pictures cannot be made ({reason})") from error
    return written


def _check_target(out: Path, path: Path, photo: Path | str) -> None:
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise UnwritableFileError(f"{photo}: {path} would be outside of {out}")
    if os.path.lexists(path) and photo_of(path) != str(photo):
        raise UnwritableFileError(f"{photo}: {path} exists and is not of this photo; move it, or give another --out")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is complete or absent at any time, even if the process is killed."""
    part = path.with_name(f".{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        try:
            part.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _overlays(photo: LoadedPhoto, result: PhotoResult, style: PictureStyle, _: tuple[int, int]) -> Iterator[bytes]:
    assert photo.pixels is not None
    for heatmap in result.maps:
        full = resize_heatmap(heatmap, photo.pixels.shape[:2])
        picture = blend(photo.pixels, full, colormap=style.colormap, alpha=style.alpha)
        if style.stamp:
            picture = stamped(picture, style.stamp)
        yield encode(picture, style.suffix, quality=style.quality, note=style.note_for(photo.path, style.suffix))


def _overlay_suffixes(count: int, style: PictureStyle) -> list[str]:
    if count == 1:
        return [f".overlay{style.suffix}"]
    return [f".overlay-{rank}{style.suffix}" for rank in range(1, count + 1)]


def _panels(photo: LoadedPhoto, result: PhotoResult, style: PictureStyle, _: tuple[int, int]) -> Iterator[bytes]:
    from ..visual.figures import panels, save

    assert photo.pixels is not None
    titles = [
        f"{shorten(name)}, {confidence(probability, score)}"
        + ("" if valid else " (empty map: nothing in favour of this class)")
        for name, probability, score, valid in zip(
            result.names, result.probabilities, result.scores, result.valid, strict=True
        )
    ]
    size = photo.pixels.shape[:2]
    heatmaps = torch.from_numpy(numpy.stack([resize_heatmap(heatmap, size) for heatmap in result.maps]))
    pixels = torch.from_numpy(photo.pixels.copy()).permute(2, 0, 1)
    figure = panels(pixels, heatmaps, titles, colormap=style.colormap, alpha=style.alpha, stamp=style.stamp)
    file = _NamedBytes(f"panels{style.suffix}")
    save(figure, file)  # type: ignore[arg-type]
    yield with_note(file.getvalue(), style.note_for(photo.path, style.suffix))


def _arrays(photo: LoadedPhoto, result: PhotoResult, style: PictureStyle, size: tuple[int, int]) -> Iterator[bytes]:
    file = BytesIO()
    numpy.save(file, numpy.stack([resize_heatmap(heatmap, size) for heatmap in result.maps]))
    yield with_note(file.getvalue(), style.note_for(photo.path, ".npy"))


class _NamedBytes(BytesIO):
    """A file in memory with a name, whose suffix tells Pillow the format."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


FORMATS = {
    "overlay": OutputFormat(_overlay_suffixes, _overlays),
    "panels": OutputFormat(lambda count, style: [style.suffix], _panels),
    "npy": OutputFormat(lambda count, style: [".npy"], _arrays, shows_photo=False),
}
