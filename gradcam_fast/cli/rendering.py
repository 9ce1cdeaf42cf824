"""Draws pictures from a table of maps, without the network: the same files that ``explain`` would have written."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ..exceptions import PhotoError, UnreadablePhotoError
from ..photo_decoding import own_pixel_limit
from ..pipeline import map_table
from ..pipeline.output_lock import lock_folder, remove_parts
from ..pipeline.photo_reading import read_photo
from ..pipeline.pictures import opencv_on_one_thread, shown_part
from ..pipeline.results import LoadedPhoto, PhotoResult
from ..pipeline.stages import run_stages
from .output_files import are_complete, suffixes, write_files
from .output_names import OutputNames

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
    if wrong := _wrong_with(rows, tuple(settings.style.note["input"])):  # type: ignore[arg-type]
        raise UnreadablePhotoError(f"{path}: its row in the table is damaged ({wrong})")
    pixels = None
    if settings.draws_photos:
        photo = read_photo(photos / path, settings.max_pixels)
        if photo.size != size:
            size_now, explained_size = (f"{width} x {height}" for width, height in (photo.size, size))
            raise UnreadablePhotoError(f"{path}: has {size_now} pixels, but {explained_size} when it was explained")
        pixels = numpy.asarray(shown_part(photo, box, settings.style.longest))
    is_old = "probabilities" not in settings.style.note
    return LoadedPhoto(Path(path), name, size, box, pixels), _result(rows, is_old)


def _wrong_with(rows: Rows, size: tuple[int, int]) -> str:
    """What is wrong with the rows of a photo whose input had (height, width); empty if nothing is."""
    first = rows[0]
    for row in rows:
        if empty := [name for name, value in row.items() if value is None and name not in ("error", "path_bytes")]:
            return f"{empty[0]} is empty"
        height, width, levels = row["map_height"], row["map_width"], len(row["map"])
        if (height, width) != (first["map_height"], first["map_width"]) or min(height, width) < 1:
            return f"a map of {height} x {width}"
        if levels != height * width:
            return f"{levels} levels for a map of {height} x {width}"
    for low, high, side in (("left", "right", "width"), ("top", "bottom", "height")):
        begin, end, most = first[low], first[high], first[side]
        is_inside = 0 <= begin < end <= most
        if not is_inside and not (begin < end and begin < most and end > 0 and _is_padded(first, size)):
            return f"{low} {begin} and {high} {end} of {most} pixels"
    return ""


def _is_padded(row: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether a box beyond the photo is one of a photo padded to an input of (height, width), or by equal shares."""
    wide, tall = row["right"] - row["left"], row["bottom"] - row["top"]
    if min(wide, tall, row["width"], row["height"]) < 1:
        return False
    # The sides of the resized photo, and those of the box, were rounded to whole pixels.
    shorter, x_scale, y_scale = min(row["width"], row["height"]), size[1] / wide, size[0] / tall
    in_proportion = abs(x_scale - y_scale) * shorter <= 1 + 1.5 * max(x_scale, y_scale)
    return in_proportion or abs(wide / row["width"] - tall / row["height"]) * shorter <= 2


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
