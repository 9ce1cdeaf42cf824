"""Draws pictures from a table of maps, without the network: the same files that ``explain`` would have written."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from . import map_table
from .output_files import are_complete, suffixes, write_files
from .output_lock import lock_folder, remove_parts
from .output_names import OutputNames
from .photo_files import UnreadablePhotoError, own_pixel_limit, read_photo
from .pictures import opencv_on_one_thread, shrink
from .results import LoadedPhoto, PhotoError, PhotoResult
from .stages import run_stages

if TYPE_CHECKING:
    from .console import Report
    from .photo_pipeline import RunSettings

__all__ = ["render_table"]

Rows = list[dict[str, Any]]


def render_table(table: Path, photos: Path, out: Path, settings: RunSettings, report: Report) -> int:
    """Write the files that ``settings`` ask for, of every photo in ``table``, to ``out``, under the names in the table.

    A number follows a name whose files are of another photo, or were not written by this package.

    Args:
        photos: the folder in which relative paths of the table start.

    Returns:
        How many photos could not be read, or are not those that were explained; each was reported and skipped.

    Raises:
        ValueError: ``table`` is not a table of maps, is damaged, or names pictures outside of ``out``.
        RuntimeError: another run is writing to ``out``.
    """
    start = time.monotonic()
    note, counts = map_table.contents(table)
    for _, name in counts:
        if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
            raise ValueError(
                f"{table} names a picture {name!r}, which would be outside of {out}; give a table that explain wrote"
            )
    settings = replace(settings, style=replace(settings.style, note=note))
    with lock_folder(out) as is_locked, opencv_on_one_thread(), own_pixel_limit():
        names = _names(counts, out, settings)
        if is_locked:
            remove_parts({(out / name).parent for name in names.values()})
        unfinished = {
            key: name
            for key, name in names.items()
            if not (settings.resume and _is_done(key, name, counts[key], out, settings))
        }
        size = tuple(note["input"])
        report.begin(len(unfinished), len(counts))
        stages = run_stages(
            ((unfinished[key], key[0], rows) for key, rows in map_table.read(table) if key in unfinished),
            lambda item: _load(*item, photos, settings),
            lambda loaded: lambda: loaded,
            lambda loaded, _: (*loaded, write_files(settings.file_formats, out, *loaded, settings.style, size)),
            batch=settings.batch_size,
            workers=settings.workers,
            skip=PhotoError,
        )
        with closing(stages):
            for _, outcome in stages:
                if isinstance(outcome, Exception):
                    report.photo_skipped(outcome)
                else:
                    photo, result, files = outcome
                    report.photo_done(photo.path, result, files)
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _names(counts: dict[map_table.Key, int], out: Path, settings: RunSettings) -> dict[map_table.Key, str]:
    """The name of the files of each photo."""
    file_suffixes = suffixes(settings.file_formats, max(counts.values(), default=1), settings.style)
    if max(counts.values(), default=1) > 1:
        file_suffixes += suffixes(settings.file_formats, 1, settings.style)
    names = OutputNames((), out, file_suffixes)
    return {(path, name): names.claim(Path(path), name) for path, name in counts}


def _is_done(key: map_table.Key, name: str, count: int, out: Path, settings: RunSettings) -> bool:
    file_suffixes = suffixes(settings.file_formats, count, settings.style)
    return are_complete(out, name, Path(key[0]), file_suffixes, settings.style)


def _load(name: str, path: str, rows: Rows, photos: Path, settings: RunSettings) -> tuple[LoadedPhoto, PhotoResult]:
    first = rows[0]
    size = first["width"], first["height"]
    box = first["left"], first["top"], first["right"], first["bottom"]
    if wrong := _wrong_with(rows):
        raise UnreadablePhotoError(f"{path}: its row in the table is damaged ({wrong})")
    pixels = None
    if settings.draws_photos:
        photo = read_photo(photos / path, settings.max_pixels)
        if photo.size != size:
            size_now, explained_size = (f"{width} x {height}" for width, height in (photo.size, size))
            raise UnreadablePhotoError(f"{path}: has {size_now} pixels, but {explained_size} when it was explained")
        pixels = numpy.asarray(shrink(photo.crop(box), settings.style.longest))
    return LoadedPhoto(Path(path), name, size, box, pixels), _result(rows)


def _wrong_with(rows: Rows) -> str:
    """What is wrong with the rows of a photo; empty if nothing is."""
    first = rows[0]
    for row in rows:
        if empty := [name for name, value in row.items() if value is None and name not in ("error", "path_bytes")]:
            return f"{empty[0]} is empty"
        height, width, levels = row["map_height"], row["map_width"], len(row["map"])
        if (height, width) != (first["map_height"], first["map_width"]) or min(height, width) < 1:
            return f"a map of {height} x {width}"
        if levels != height * width:
            return f"{levels} levels for a map of {height} x {width}"
    if not (0 <= first["left"] < first["right"] <= first["width"]):
        return f"left {first['left']} and right {first['right']} of {first['width']} pixels"
    if not (0 <= first["top"] < first["bottom"] <= first["height"]):
        return f"top {first['top']} and bottom {first['bottom']} of {first['height']} pixels"
    return ""


def _result(rows: Rows) -> PhotoResult:
    def column(name: str) -> tuple[Any, ...]:
        return tuple(row[name] for row in rows)

    grid = rows[0]["map_height"], rows[0]["map_width"]
    levels = numpy.frombuffer(b"".join(column("map")), numpy.uint8).reshape(len(rows), *grid)
    return PhotoResult(
        classes=column("class"),
        names=column("class_name"),
        probabilities=column("probability"),
        scores=column("score"),
        maps=levels.astype(numpy.float32) / 255,
        raw_min=column("raw_min"),
        raw_max=column("raw_max"),
        valid=column("valid"),
        layer=rows[0]["layer"],
        best=tuple(zip(column("class_name"), column("class"), column("probability"), strict=True)),
    )
