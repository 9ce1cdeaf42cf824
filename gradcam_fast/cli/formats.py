"""The files that can be made of one explained photo: overlays, panels, arrays. A new format is a line in `FORMATS`.

Knows nothing of models, nor of which photos are explained when.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

from .answers import shown
from .drawing import blend, enlarged
from .written import annotated, encoded, note_of, write_whole

if TYPE_CHECKING:
    from .answers import Answer, Subject

__all__ = ["FORMATS", "Style", "complete", "make", "suffixes"]


@dataclass(frozen=True)
class Style:
    """How pictures look and what is noted in them.

    Attributes:
        colormap, alpha: as in :func:`gradcam_fast.overlay`.
        suffix: ``.jpg`` or ``.png``.
        quality: of JPEG, 1 to 100.
        longest: pictures are made at the photo's resolution, but no side is longer than this many pixels.
        note: what each picture says of its making, beside the photo's path.
    """

    colormap: str = "jet"
    alpha: float = 0.5
    suffix: str = ".jpg"
    quality: int = 90
    longest: int = 1600
    note: dict[str, object] = field(default_factory=dict)

    def note_for(self, photo: Path) -> str:
        """What a picture of ``photo`` carries as its comment: JSON in ASCII."""
        style = {name: getattr(self, name) for name in ("colormap", "alpha", "quality", "longest")}
        return json.dumps({"photo": str(photo), **self.note, **style})


@dataclass(frozen=True)
class Format:
    """One kind of file: what their names end in for K classes, how they are made, whether they show the photo."""

    endings: Callable[[int, Style], list[str]]
    make: Callable[[Subject, Answer, Style, tuple[int, int]], Iterator[bytes]]
    pictures: bool = True


def suffixes(formats: tuple[str, ...], count: int, style: Style) -> list[str]:
    """What the names of all files of a photo end in, ``count`` classes being asked about."""
    return [ending for name in formats for ending in FORMATS[name].endings(count, style)]


def complete(out: Path, name: str, photo: Path, endings: list[str], style: Style) -> bool:
    """Whether all files of a photo are there, the pictures made of this photo and in this way."""
    files = [out / f"{name}{ending}" for ending in endings]
    note = style.note_for(photo)
    return all(file.exists() and (file.suffix == ".npy" or note_of(file) == note) for file in files)


def make(
    formats: tuple[str, ...], out: Path, subject: Subject, answer: Answer, style: Style, size: tuple[int, int]
) -> list[Path]:
    """Write all files of one photo; ``size`` (height, width) is that of the arrays."""
    written = []
    for name in formats:
        endings = FORMATS[name].endings(len(answer.classes), style)
        for ending, data in zip(endings, FORMATS[name].make(subject, answer, style, size), strict=True):
            path = out / f"{subject.name}{ending}"
            write_whole(path, data)
            written.append(path)
    return written


def _overlays(subject: Subject, answer: Answer, style: Style, _: tuple[int, int]) -> Iterator[bytes]:
    assert subject.pixels is not None
    for heatmap in answer.maps:
        full = enlarged(heatmap, subject.pixels.shape[:2])
        picture = blend(subject.pixels, full, colormap=style.colormap, alpha=style.alpha)
        yield encoded(picture, style.suffix, quality=style.quality, note=style.note_for(subject.path))


def _overlay_endings(count: int, style: Style) -> list[str]:
    if count == 1:
        return [f".overlay{style.suffix}"]
    return [f".overlay-{rank}{style.suffix}" for rank in range(1, count + 1)]


def _panels(subject: Subject, answer: Answer, style: Style, _: tuple[int, int]) -> Iterator[bytes]:
    from ..visual.figures import panels, save

    assert subject.pixels is not None
    titles = [
        f"{name}, {shown(probability, score)}" + ("" if valid else " (empty map: no evidence)")
        for name, probability, score, valid in zip(
            answer.names, answer.probabilities, answer.scores, answer.valid, strict=True
        )
    ]
    heatmap = torch.from_numpy(numpy.stack([enlarged(each, subject.pixels.shape[:2]) for each in answer.maps]))
    pixels = torch.from_numpy(subject.pixels.copy()).permute(2, 0, 1)
    figure = panels(pixels, heatmap, titles, colormap=style.colormap, alpha=style.alpha)
    file = _Named(f"panels{style.suffix}")
    save(figure, file)  # type: ignore[arg-type]
    yield annotated(file.getvalue(), style.note_for(subject.path))


def _arrays(subject: Subject, answer: Answer, style: Style, size: tuple[int, int]) -> Iterator[bytes]:
    file = BytesIO()
    numpy.save(file, numpy.stack([enlarged(each, size) for each in answer.maps]))
    yield file.getvalue()


class _Named(BytesIO):
    """A file in memory with a name, from which Pillow knows the format."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


FORMATS = {
    "overlay": Format(_overlay_endings, _overlays),
    "panels": Format(lambda count, style: [style.suffix], _panels),
    "npy": Format(lambda count, style: [".npy"], _arrays, pictures=False),
}
