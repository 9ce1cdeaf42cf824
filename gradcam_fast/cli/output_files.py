"""The files written for one explained photo: their formats, their names, and how they are written.

To add a format, add a line to `FORMATS` and its name to `commands.FORMAT_NAMES`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

from ..probabilities import confidence
from ..visual.figures import is_own
from ..visual.stamp import RANDOM_WEIGHTS, stamped
from .pictures import blend, encode, read_note, resize_heatmap, with_note

if TYPE_CHECKING:
    from .photo_files import PhotoFile
    from .results import LoadedPhoto, PhotoResult

__all__ = ["FORMATS", "PictureStyle", "are_complete", "output_names", "suffixes", "write_files", "write_whole"]


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

    def note_for(self, photo: Path) -> str:
        """The comment of a picture of ``photo``: JSON in ASCII."""
        style = {name: getattr(self, name) for name in ("colormap", "alpha", "quality", "longest")}
        return json.dumps({"photo": str(photo), **self.note, **style})


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
    """Whether all files of a photo exist, and the pictures among them were made from this photo in this style."""
    files = [out / f"{name}{suffix}" for suffix in suffixes]
    note = style.note_for(photo)
    return all(file.exists() and (file.suffix == ".npy" or read_note(file) == note) for file in files)


def write_files(
    formats: tuple[str, ...],
    out: Path,
    photo: LoadedPhoto,
    result: PhotoResult,
    style: PictureStyle,
    size: tuple[int, int],
) -> list[Path]:
    """Write all files of one photo and return their paths; arrays have ``size`` (height, width)."""
    written = []
    for output_format in map(FORMATS.__getitem__, formats):
        file_suffixes = output_format.suffixes(len(result.classes), style)
        for suffix, data in zip(file_suffixes, output_format.make(photo, result, style, size), strict=True):
            path = out / f"{photo.name}{suffix}"
            write_whole(path, data)
            written.append(path)
    return written


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is complete or absent at any time, even if the process is killed."""
    # The name is always the same, so that the next run overwrites an incomplete file of a killed one.
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        part.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
    os.replace(part, path)


def output_names(photos: Sequence[PhotoFile], out: Path, suffixes: Sequence[str]) -> list[str]:
    """For each photo, the path of its files in ``out``, without suffix: ``<subfolder>/<stem>-gradcam``.

    A number follows where two photos would share a file, also on file systems that ignore case. No file replaces a
    photo, or a picture that this package did not write.
    """
    used_keys = {_key(photo.path) for photo in photos}
    names = []
    for photo in photos:
        for name in _candidates(photo):
            files = [out / f"{name}{suffix}" for suffix in suffixes]
            keys = {_key(file) for file in files}
            if not keys & used_keys and all(map(_is_replaceable, files)):
                break
        used_keys |= keys
        names.append(name)
    return names


def _candidates(photo: PhotoFile) -> Iterator[str]:
    base = (photo.subfolder / f"{photo.path.stem}-gradcam").as_posix()
    yield base
    for number in itertools.count(2):
        yield f"{base}-{number}"


def _is_replaceable(path: Path) -> bool:
    # Arrays cannot carry a mark, so an array of this name is assumed to be written by an earlier run.
    return not path.exists() or path.suffix == ".npy" or is_own(path)


def _key(path: Path) -> tuple[str, str]:
    return _resolved(path.parent), path.name.casefold()


@functools.lru_cache(maxsize=4096)
def _resolved(folder: Path) -> str:
    return str(folder.resolve()).casefold()


def _overlays(photo: LoadedPhoto, result: PhotoResult, style: PictureStyle, _: tuple[int, int]) -> Iterator[bytes]:
    assert photo.pixels is not None
    for heatmap in result.maps:
        full = resize_heatmap(heatmap, photo.pixels.shape[:2])
        picture = blend(photo.pixels, full, colormap=style.colormap, alpha=style.alpha)
        if style.stamp:
            picture = stamped(picture, style.stamp)
        yield encode(picture, style.suffix, quality=style.quality, note=style.note_for(photo.path))


def _overlay_suffixes(count: int, style: PictureStyle) -> list[str]:
    if count == 1:
        return [f".overlay{style.suffix}"]
    return [f".overlay-{rank}{style.suffix}" for rank in range(1, count + 1)]


def _panels(photo: LoadedPhoto, result: PhotoResult, style: PictureStyle, _: tuple[int, int]) -> Iterator[bytes]:
    from ..visual.figures import panels, save

    assert photo.pixels is not None
    titles = [
        f"{name}, {confidence(probability, score)}" + ("" if valid else " (empty map: nothing in favour of this class)")
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
    yield with_note(file.getvalue(), style.note_for(photo.path))


def _arrays(photo: LoadedPhoto, result: PhotoResult, style: PictureStyle, size: tuple[int, int]) -> Iterator[bytes]:
    file = BytesIO()
    numpy.save(file, numpy.stack([resize_heatmap(heatmap, size) for heatmap in result.maps]))
    yield file.getvalue()


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
