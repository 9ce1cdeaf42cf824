"""Maps in Parquet, a row for each: enough to draw every picture later, 49 bytes for a map of 7x7.

A table is a folder of part files, each written whole and then renamed, so that what an interrupted run leaves is a
valid table. Knows nothing of networks, of how maps are made or drawn.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    raise ImportError("tables are written with pyarrow, which is not installed; run pip install pyarrow") from error

from .answers import Answer, Subject

__all__ = ["MapTable", "contents", "read"]

Key = tuple[str, str]

SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),  # of the photo, as it was given
        ("name", pyarrow.string()),  # of its pictures, in the output folder and without suffix
        ("width", pyarrow.int32()),  # of the whole photo
        ("height", pyarrow.int32()),
        ("left", pyarrow.int32()),  # the part of it that the network saw and the map covers
        ("top", pyarrow.int32()),
        ("right", pyarrow.int32()),
        ("bottom", pyarrow.int32()),
        ("class", pyarrow.int32()),
        ("class_name", pyarrow.string()),
        ("probability", pyarrow.float32()),
        ("score", pyarrow.float32()),  # the logit that was explained
        ("raw_min", pyarrow.float32()),  # raw value = raw_min + level / 255 * (raw_max - raw_min)
        ("raw_max", pyarrow.float32()),
        ("valid", pyarrow.bool_()),
        ("layer", pyarrow.string()),
        ("map_height", pyarrow.int16()),
        ("map_width", pyarrow.int16()),
        ("map", pyarrow.binary()),  # map_height * map_width levels from 0 to 255, row by row
    ]
)
SETTINGS = b"gradcam_fast"
# A part is written when it has so many rows, or after so long: what a process that is killed loses is no more.
ROWS, SECONDS = 4096, 300


class MapTable:
    """The table in ``folder``, to be appended to; rows reach the disk by the thousand, by minutes, and at the end.

    Args:
        settings: how the maps are made; the same for the whole table.
        resume: whether to go on with a table that is there.

    Raises:
        FileExistsError: there is a table, and it is not to be resumed.
        ValueError: the table that is there was made with other settings.

    As a context manager it writes what is pending also when an exception passes through.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.schema = SCHEMA.with_metadata({SETTINGS: json.dumps(settings)})
        self.pending: list[dict[str, Any]] = []
        self.written = time.monotonic()
        parts = _parts(folder)
        if parts and not resume:
            raise FileExistsError(f"{folder} exists; give --resume to go on with it, or another --out")
        if parts:
            _check_same(folder, _settings(parts[0]), settings)
        self.number = 1 + max((int(part.stem.partition("-")[2]) for part in parts), default=-1)
        self.photos = {photo for part in parts for photo in _photos(part)}

    def __contains__(self, photo: Key) -> bool:
        """Whether the maps of a photo, (path, name), are in the table."""
        return photo in self.photos

    def append(self, subject: Subject, answer: Answer) -> None:
        """Add the maps of one photo, unless they are there."""
        if (key := (str(subject.path), subject.name)) in self.photos:
            return
        self.photos.add(key)
        self.pending += _rows(subject, answer)
        if len(self.pending) >= ROWS or time.monotonic() - self.written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending, as a further part."""
        if not self.pending:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"part-{self.number:05}.parquet"
        # Readers of folders pass over names with a dot in front.
        unfinished = part.with_name(f".{part.name}")
        table = pyarrow.Table.from_pylist(self.pending, schema=self.schema)
        pyarrow.parquet.write_table(table, unfinished, compression="zstd")
        os.replace(unfinished, part)
        self.number += 1
        self.pending = []
        self.written = time.monotonic()

    def __enter__(self) -> MapTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def _rows(subject: Subject, answer: Answer) -> list[dict[str, Any]]:
    """The rows of one photo, one for each class."""
    left, top, right, bottom = subject.box
    levels = (answer.maps * 255).round().astype(numpy.uint8)
    photo = {
        "path": str(subject.path),
        "name": subject.name,
        "width": subject.size[0],
        "height": subject.size[1],
        "left": left,
        "top": top,
        "right": right,
        "bottom": bottom,
        "layer": answer.layer,
        "map_height": levels.shape[1],
        "map_width": levels.shape[2],
    }
    return [
        {
            **photo,
            "class": answer.classes[rank],
            "class_name": answer.names[rank],
            "probability": answer.probabilities[rank],
            "score": answer.scores[rank],
            "raw_min": answer.raw_min[rank],
            "raw_max": answer.raw_max[rank],
            "valid": answer.valid[rank],
            "map": levels[rank].tobytes(),
        }
        for rank in range(len(levels))
    ]


def contents(table: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The settings of a table (its folder, or one file of it), and how many maps it has of each photo.

    Raises:
        ValueError: it is not such a table.
    """
    if not (parts := _parts(table)):
        raise ValueError(f"{table} holds no table of maps; give the maps.parquet that explain --format parquet wrote")
    return _settings(parts[0]), Counter(photo for part in parts for photo in _photos(part))


def read(table: Path) -> Iterator[tuple[Key, list[dict[str, Any]]]]:
    """Each photo of a table, (path, name), with its rows; a few at a time are in memory."""
    for part in _parts(table):
        batches = pyarrow.parquet.ParquetFile(part).iter_batches(1024)
        flat = (row for batch in batches for row in batch.to_pylist())
        for photo, together in groupby(flat, lambda row: (row["path"], row["name"])):
            yield photo, list(together)


def _parts(table: Path) -> list[Path]:
    return [table] if table.is_file() else sorted(table.glob("part-*.parquet"))


def _settings(part: Path) -> dict[str, Any]:
    try:
        metadata = pyarrow.parquet.read_schema(part).metadata or {}
        found: dict[str, Any] = json.loads(metadata[SETTINGS])
    except (pyarrow.ArrowInvalid, KeyError, json.JSONDecodeError):
        raise ValueError(f"{part} is no table of maps that explain --format parquet wrote") from None
    return found


def _check_same(folder: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    for name in {**settings, **found}:
        if found.get(name) != settings.get(name):
            raise ValueError(
                f"{folder} was made with {name}={found.get(name)!r}, not {settings.get(name)!r}; resume it with the "
                "same options, or give another --out"
            )


def _photos(part: Path) -> Iterator[Key]:
    table = pyarrow.parquet.read_table(part, columns=["path", "name"])
    return zip(table["path"].to_pylist(), table["name"].to_pylist(), strict=True)
