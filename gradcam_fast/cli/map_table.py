"""A table of maps in Parquet, one row for each photo and class, from which pictures can be drawn later.

A table is a folder of part files. Each part is written completely and then renamed, so that an interrupted run leaves
a valid table.
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

from .results import LoadedPhoto, PhotoResult

__all__ = ["MapTable", "contents", "read"]

Key = tuple[str, str]

SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),  # of the photo, as it was given
        ("name", pyarrow.string()),  # path of its pictures, in the output folder and without suffix
        ("width", pyarrow.int32()),  # of the whole photo
        ("height", pyarrow.int32()),
        ("left", pyarrow.int32()),  # the part of the photo that the network saw and the map covers
        ("top", pyarrow.int32()),
        ("right", pyarrow.int32()),
        ("bottom", pyarrow.int32()),
        ("class", pyarrow.int32()),
        ("class_name", pyarrow.string()),
        ("probability", pyarrow.float32()),  # NaN where it is not known
        ("score", pyarrow.float32()),  # the output that was explained
        ("raw_min", pyarrow.float32()),  # raw value = raw_min + level / 255 * (raw_max - raw_min)
        ("raw_max", pyarrow.float32()),
        ("valid", pyarrow.bool_()),
        ("layer", pyarrow.string()),
        ("map_height", pyarrow.int16()),
        ("map_width", pyarrow.int16()),
        ("map", pyarrow.binary()),  # map_height * map_width levels from 0 to 255, row by row
    ]
)
SETTINGS_KEY = b"gradcam_fast"
# A part is written when it has this many rows or is this old; a killed process loses no more than one part.
ROWS_PER_PART, SECONDS_PER_PART = 4096, 300


class MapTable:
    """The table in ``folder``, open for appending; rows are written in parts, and at the end.

    As a context manager, it writes the pending rows at the end of the block, also if the block raises.

    Args:
        settings: how the maps are made; the same for the whole table.
        resume: whether to add to an existing table.

    Raises:
        FileExistsError: a table exists, and ``resume`` is False.
        ValueError: the existing table was made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.schema = SCHEMA.with_metadata({SETTINGS_KEY: json.dumps(settings)})
        self.pending: list[dict[str, Any]] = []
        self.written = time.monotonic()
        parts = _parts(folder)
        if parts and not resume:
            raise FileExistsError(f"{folder} exists; give --resume to add to it, or another --out")
        if parts:
            _check_same(folder, _settings(parts[0]), settings)
        self.number = 1 + max((int(part.stem.partition("-")[2]) for part in parts), default=-1)
        self.photos = {photo for part in parts for photo in _photos(part)}

    def __contains__(self, key: Key) -> bool:
        """Whether the table has the maps of a photo, given as (path, name)."""
        return key in self.photos

    def append(self, photo: LoadedPhoto, result: PhotoResult) -> None:
        """Add the maps of one photo, unless the table has them."""
        if (key := (str(photo.path), photo.name)) in self.photos:
            return
        self.photos.add(key)
        self.pending += _rows(photo, result)
        if len(self.pending) >= ROWS_PER_PART or time.monotonic() - self.written > SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as a new part."""
        if not self.pending:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"part-{self.number:05}.parquet"
        # Readers of a folder ignore names that start with a dot.
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


def _rows(photo: LoadedPhoto, result: PhotoResult) -> list[dict[str, Any]]:
    """The rows of one photo, one for each class."""
    left, top, right, bottom = photo.box
    levels = (result.maps * 255).round().astype(numpy.uint8)
    common = {
        "path": str(photo.path),
        "name": photo.name,
        "width": photo.size[0],
        "height": photo.size[1],
        "left": left,
        "top": top,
        "right": right,
        "bottom": bottom,
        "layer": result.layer,
        "map_height": levels.shape[1],
        "map_width": levels.shape[2],
    }
    return [
        {
            **common,
            "class": result.classes[rank],
            "class_name": result.names[rank],
            "probability": result.probabilities[rank],
            "score": result.scores[rank],
            "raw_min": result.raw_min[rank],
            "raw_max": result.raw_max[rank],
            "valid": result.valid[rank],
            "map": levels[rank].tobytes(),
        }
        for rank in range(len(levels))
    ]


def contents(table: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The settings of a table (its folder, or one file of it), and how many maps it has of each photo.

    Raises:
        ValueError: ``table`` is not a table of maps.
    """
    if not (parts := _parts(table)):
        raise ValueError(f"{table} is not a table of maps; give the maps.parquet that explain --format parquet wrote")
    return _settings(parts[0]), Counter(photo for part in parts for photo in _photos(part))


def read(table: Path) -> Iterator[tuple[Key, list[dict[str, Any]]]]:
    """Each photo of a table, as (path, name), with its rows; only a few rows are in memory at a time."""
    for part in _parts(table):
        batches = pyarrow.parquet.ParquetFile(part).iter_batches(1024)
        flat = (row for batch in batches for row in batch.to_pylist())
        for key, rows in groupby(flat, lambda row: (row["path"], row["name"])):
            yield key, list(rows)


def _parts(table: Path) -> list[Path]:
    return [table] if table.is_file() else sorted(table.glob("part-*.parquet"))


def _settings(part: Path) -> dict[str, Any]:
    try:
        metadata = pyarrow.parquet.read_schema(part).metadata or {}
        settings: dict[str, Any] = json.loads(metadata[SETTINGS_KEY])
    except (pyarrow.ArrowInvalid, KeyError, json.JSONDecodeError):
        raise ValueError(f"{part} is not part of a table of maps; give the maps.parquet that explain wrote") from None
    return settings


def _check_same(folder: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    for name in {**settings, **stored}:
        if stored.get(name) != settings.get(name):
            raise ValueError(
                f"{folder} was made with {name}={stored.get(name)!r}, not {settings.get(name)!r}; resume with the same "
                "options, or give another --out"
            )


def _photos(part: Path) -> Iterator[Key]:
    table = pyarrow.parquet.read_table(part, columns=["path", "name"])
    return zip(table["path"].to_pylist(), table["name"].to_pylist(), strict=True)
