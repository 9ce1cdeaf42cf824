"""Pictures from a table of maps: no network, no device; the same files as explaining would have written.

Knows nothing of options or exit codes.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from . import formats, map_table
from .answers import Answer, Subject
from .drawing import opencv_on_one_thread, shrunk
from .formats import FORMATS
from .photos import UnreadablePhotoError, read_photo
from .stages import flow

if TYPE_CHECKING:
    from .pipeline import Plan
    from .report import Report

__all__ = ["render_files"]

Rows = list[dict[str, Any]]


def render_files(table: Path, photos: Path, out: Path, plan: Plan, report: Report) -> int:
    """Make the files that the plan asks for of every photo in ``table``, in ``out``, under the names noted there.

    Args:
        photos: the folder that relative paths in the table start from.

    Returns:
        How many photos could not be read, or are not those that were explained; each was complained of and skipped.

    Raises:
        ValueError: ``table`` is no table of maps, or it names pictures outside of ``out``.
    """
    start = time.monotonic()
    settings, counts = map_table.contents(table)
    for _, name in counts:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{table} names a picture {name!r}, which would lie outside of {out}")
    plan = replace(plan, style=replace(plan.style, note=settings))
    todo = {photo for photo, count in counts.items() if not (plan.resume and _complete(photo, count, out, plan))}
    size = tuple(settings["input"])
    report.begin(len(todo), len(counts))
    with (
        opencv_on_one_thread(),
        closing(
            flow(
                (rows for photo, rows in map_table.read(table) if photo in todo),
                lambda rows: _read(rows, photos, plan),
                lambda read: lambda: read,
                lambda read, _: (*read, formats.make(plan.files, out, *read, plan.style, size)),
                batch=plan.batch_size,
                workers=plan.workers,
                skip=UnreadablePhotoError,
            )
        ) as flowing,
    ):
        for _, made in flowing:
            if isinstance(made, Exception):
                report.skipped(made)
            else:
                subject, answer, files = made
                report.explained(subject.path, answer, files)
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _complete(photo: map_table.Key, count: int, out: Path, plan: Plan) -> bool:
    path, name = photo
    endings = formats.suffixes(plan.files, count, plan.style)
    return formats.complete(out, name, Path(path), endings, plan.style)


def _read(rows: Rows, photos: Path, plan: Plan) -> tuple[Subject, Answer]:
    first = rows[0]
    size = first["width"], first["height"]
    box = first["left"], first["top"], first["right"], first["bottom"]
    pixels = None
    if any(FORMATS[each].pictures for each in plan.files):
        photo = read_photo(photos / first["path"])
        if photo.size != size:
            found, told = (f"{width} x {height}" for width, height in (photo.size, size))
            raise UnreadablePhotoError(f"{first['path']}: is {found} pixels, but {told} were explained")
        pixels = numpy.asarray(shrunk(photo.crop(box), plan.style.longest))
    return Subject(Path(first["path"]), first["name"], size, box, pixels), _answer(rows)


def _answer(rows: Rows) -> Answer:
    def column(name: str) -> tuple[Any, ...]:
        return tuple(row[name] for row in rows)

    grid = rows[0]["map_height"], rows[0]["map_width"]
    levels = numpy.frombuffer(b"".join(column("map")), numpy.uint8).reshape(len(rows), *grid)
    return Answer(
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
