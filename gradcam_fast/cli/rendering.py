"""Draws pictures from a table of maps, without the network: the same files that ``explain`` would have written."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from . import map_table
from .output_files import are_complete, suffixes, write_files
from .photo_files import UnreadablePhotoError, read_photo
from .pictures import opencv_on_one_thread, shrink
from .results import LoadedPhoto, PhotoResult
from .stages import run_stages

if TYPE_CHECKING:
    from .console import Report
    from .photo_pipeline import RunSettings

__all__ = ["render_table"]

Rows = list[dict[str, Any]]


def render_table(table: Path, photos: Path, out: Path, settings: RunSettings, report: Report) -> int:
    """Write the files that ``settings`` ask for, of every photo in ``table``, to ``out``, under the names in the table.

    Args:
        photos: the folder in which relative paths of the table start.

    Returns:
        How many photos could not be read, or are not those that were explained; each was reported and skipped.

    Raises:
        ValueError: ``table`` is not a table of maps, or it names pictures outside of ``out``.
    """
    start = time.monotonic()
    note, counts = map_table.contents(table)
    for _, name in counts:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{table} names a picture {name!r}, which would be outside of {out}; give a table that explain wrote"
            )
    settings = replace(settings, style=replace(settings.style, note=note))
    unfinished = {key for key, count in counts.items() if not (settings.resume and _is_done(key, count, out, settings))}
    size = tuple(note["input"])
    report.begin(len(unfinished), len(counts))
    stages = run_stages(
        (rows for key, rows in map_table.read(table) if key in unfinished),
        lambda rows: _load(rows, photos, settings),
        lambda loaded: lambda: loaded,
        lambda loaded, _: (*loaded, write_files(settings.file_formats, out, *loaded, settings.style, size)),
        batch=settings.batch_size,
        workers=settings.workers,
        skip=UnreadablePhotoError,
    )
    with opencv_on_one_thread(), closing(stages):
        for _, outcome in stages:
            if isinstance(outcome, Exception):
                report.photo_skipped(outcome)
            else:
                photo, result, files = outcome
                report.photo_done(photo.path, result, files)
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _is_done(key: map_table.Key, count: int, out: Path, settings: RunSettings) -> bool:
    path, name = key
    file_suffixes = suffixes(settings.file_formats, count, settings.style)
    return are_complete(out, name, Path(path), file_suffixes, settings.style)


def _load(rows: Rows, photos: Path, settings: RunSettings) -> tuple[LoadedPhoto, PhotoResult]:
    first = rows[0]
    size = first["width"], first["height"]
    box = first["left"], first["top"], first["right"], first["bottom"]
    pixels = None
    if settings.draws_photos:
        photo = read_photo(photos / first["path"])
        if photo.size != size:
            size_now, explained_size = (f"{width} x {height}" for width, height in (photo.size, size))
            raise UnreadablePhotoError(
                f"{first['path']}: has {size_now} pixels, but {explained_size} when it was explained"
            )
        pixels = numpy.asarray(shrink(photo.crop(box), settings.style.longest))
    is_old = "probabilities" not in settings.style.note
    return LoadedPhoto(Path(first["path"]), first["name"], size, box, pixels), _result(rows, is_old)


def _result(rows: Rows, is_old: bool) -> PhotoResult:
    def column(name: str) -> tuple[Any, ...]:
        return tuple(row[name] for row in rows)

    # A table without the setting is of a release that took the softmax of every network's outputs, also of outputs that
    # were probabilities already; their scores are shown alone.
    probabilities = tuple(
        math.nan if is_old and 0 <= score <= 1 else probability
        for probability, score in zip(column("probability"), column("score"), strict=True)
    )
    grid = rows[0]["map_height"], rows[0]["map_width"]
    levels = numpy.frombuffer(b"".join(column("map")), numpy.uint8).reshape(len(rows), *grid)
    return PhotoResult(
        classes=column("class"),
        names=column("class_name"),
        probabilities=probabilities,
        scores=column("score"),
        maps=levels.astype(numpy.float32) / 255,
        raw_min=column("raw_min"),
        raw_max=column("raw_max"),
        valid=column("valid"),
        layer=rows[0]["layer"],
        best=tuple(zip(column("class_name"), column("class"), probabilities, column("score"), strict=True)),
    )
