"""A table of maps in Parquet, one row for each photo and class, from which pictures can be drawn later.

A table is a folder of part files. Each part is written completely and then renamed, so that an interrupted run leaves
a valid table. Parts have unique names: several processes may write to one folder.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    raise ImportError("tables are written with pyarrow, which is not installed; run pip install pyarrow") from error

from ..exceptions import PhotoError
from .output_lock import PART_SUFFIX
from .results import LoadedPhoto, PhotoResult

__all__ = ["MapTable", "contents", "read"]

Key = tuple[str, str]

SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),  # of the photo, as it was given; bytes that are not UTF-8 are escaped
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
        ("error", pyarrow.string()),  # why the photo has no map; its class is then -1
        ("path_bytes", pyarrow.binary()),  # the path as the file system has it, where that is not UTF-8
    ]
)
# Of the row of a photo that could not be explained: no nulls, so that the columns keep their types in pandas.
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("width", "height", "left", "top", "right", "bottom", "map_height", "map_width"), 0),
    **dict.fromkeys(("probability", "score", "raw_min", "raw_max"), float("nan")),
    "class": -1,
    "class_name": "",
    "valid": False,
    "layer": "",
    "map": b"",
}
SETTINGS_KEY = b"gradcam_fast"
# A part is written when it has this many rows or is this old; a killed process loses no more than one part.
ROWS_PER_PART, SECONDS_PER_PART = 4096, 300


class MapTable:
    """The table in ``folder``, open for appending; rows are written in parts, and at the end.

    As a context manager, it writes the pending rows at the end of the block, also if the block raises.

    Args:
        settings: how the maps are made; the same for the whole table.
        resume: whether to add to an existing table.

    Attributes:
        owners: the path of the photo that has a name, by the name in lower case.

    Raises:
        FileExistsError: a table exists, and ``resume`` is False.
        ValueError: the existing table was made with other settings, or a part of it is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder, self.settings = folder, settings
        self.schema = SCHEMA.with_metadata({SETTINGS_KEY: json.dumps(settings)})
        self.pending: list[pyarrow.RecordBatch] = []
        self.written = time.monotonic()
        self.parts = set(parts := _parts(folder))
        if parts and not resume:
            raise FileExistsError(f"{folder} exists; give --resume to add to it, or another --out")
        for part in parts:
            _check_same(folder, _settings(part), settings)
        self.number = 1 + max((int(part.stem.split("-")[1]) for part in parts), default=-1)
        self.photos: set[Key] = set()
        self.failed: set[Key] = set()
        self.owners: dict[str, str] = {}
        for part in parts:
            for key, is_error in _photos(part):
                (self.failed if is_error else self.photos).add(key)
                self.owners.setdefault(key[1].casefold(), key[0])

    def __contains__(self, key: Key) -> bool:
        """Whether the table has the maps of a photo, given as (path, name)."""
        return key in self.photos

    def rows_of(self, photo: LoadedPhoto, result: PhotoResult) -> tuple[Key, pyarrow.RecordBatch]:
        """The rows of one photo, for `append`.

        Raises:
            PhotoError: a value does not fit the table.
        """
        return (str(photo.path), photo.name), self._batch(photo.path, _rows(photo, result))

    def append(self, rows: tuple[Key, pyarrow.RecordBatch]) -> None:
        """Add the maps of one photo, unless the table has them."""
        key, batch = rows
        if key not in self.photos:
            self.photos.add(key)
            self._add(batch)

    def append_error(self, path: Path, name: str, error: Exception) -> None:
        """Add a row that says why a photo has no maps, unless the table has one of this photo."""
        key = str(path), name
        if key not in self.photos and key not in self.failed:
            self.failed.add(key)
            self._add(self._batch(path, [{**_path(path), "name": name, **NOTHING, "error": _utf8(str(error))}]))

    def _batch(self, path: Path, rows: list[dict[str, Any]]) -> pyarrow.RecordBatch:
        try:
            return pyarrow.RecordBatch.from_pylist(rows, schema=self.schema)
        except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError, ValueError) as error:
            raise PhotoError(f"{path}: does not fit the table ({' '.join(str(error).split())})") from error

    def _add(self, batch: pyarrow.RecordBatch) -> None:
        self.pending.append(batch)
        rows = sum(len(pending) for pending in self.pending)
        if rows >= ROWS_PER_PART or time.monotonic() - self.written > SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as a new part.

        Raises:
            ValueError: another process has written a part with other settings meanwhile; the rows are kept.
        """
        if not self.pending:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in set(_parts(self.folder)) - self.parts:
            _check_same(self.folder, _settings(part), self.settings)
            self.parts.add(part)
        unique = uuid.uuid4().hex
        part = self.folder / f"part-{self.number:05}-{unique}.parquet"
        # Readers of a folder ignore names that start with a dot.
        unfinished = part.with_name(f".{unique}{PART_SUFFIX}")
        try:
            table = pyarrow.Table.from_batches(self.pending, schema=self.schema)
            pyarrow.parquet.write_table(table, unfinished, compression="zstd")
            os.replace(unfinished, part)
        finally:
            unfinished.unlink(missing_ok=True)
        self.parts.add(part)
        self.number += 1
        self.pending = []
        self.written = time.monotonic()

    def __enter__(self) -> MapTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _path(path: Path) -> dict[str, Any]:
    """The columns of a path: readable text, and the bytes if the text does not say them all."""
    try:
        text, data = str(path).encode().decode(), None
    except UnicodeEncodeError:
        data = os.fsencode(path)
        text = data.decode("utf-8", "backslashreplace")
    return {"path": text, "path_bytes": data}


def _rows(photo: LoadedPhoto, result: PhotoResult) -> list[dict[str, Any]]:
    """The rows of one photo, one for each class."""
    left, top, right, bottom = photo.box
    levels = (result.maps * 255).round().astype(numpy.uint8)
    common = {
        **_path(photo.path),
        "name": photo.name,
        "width": photo.size[0],
        "height": photo.size[1],
        "left": left,
        "top": top,
        "right": right,
        "bottom": bottom,
        "layer": _utf8(result.layer),
        "map_height": levels.shape[1],
        "map_width": levels.shape[2],
    }
    return [
        {
            **common,
            "class": result.classes[rank],
            "class_name": _utf8(result.names[rank]),
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
        ValueError: ``table`` is not a table of maps, a part of it is damaged, or its parts have other settings.
    """
    if not (parts := _parts(table)):
        raise ValueError(f"{table} is not a table of maps; give the maps.parquet that explain --format parquet wrote")
    settings = _settings(parts[0])
    for part in parts[1:]:
        _check_same(table, _settings(part), settings)
    return settings, Counter(key for part in parts for key, is_error in _photos(part) if not is_error)


def read(table: Path) -> Iterator[tuple[Key, list[dict[str, Any]]]]:
    """Each photo of a table that has maps, as (path, name), with its rows; only a few rows are in memory at a time.

    Raises:
        ValueError: a part is damaged.
    """
    for part in _parts(table):
        try:
            batches = pyarrow.parquet.ParquetFile(part).iter_batches(1024)
            flat = (row for batch in batches for row in batch.to_pylist() if not row.get("error"))
            for key, rows in groupby(flat, _key):
                yield key, list(rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(part, error) from error


def _key(row: Mapping[str, Any]) -> Key:
    data = row.get("path_bytes")
    return row["path"] if data is None else os.fsdecode(data), row["name"]


def _parts(table: Path) -> list[Path]:
    return [table] if table.is_file() else sorted(table.glob("part-*.parquet"))


def _settings(part: Path) -> dict[str, Any]:
    settings: Any = None
    try:
        metadata = pyarrow.parquet.read_schema(part).metadata or {}
        settings = json.loads(metadata[SETTINGS_KEY])
    except (pyarrow.ArrowException, KeyError, ValueError):
        pass
    except OSError as error:
        raise _damaged(part, error) from error
    size = settings.get("input") if isinstance(settings, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"{part} is not part of a table of maps; give the maps.parquet that explain wrote")
    return settings


def _check_same(folder: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    for name in {**settings, **stored}:
        if stored.get(name) != settings.get(name):
            raise ValueError(
                f"{folder} was made with {name}={stored.get(name)!r}, not {settings.get(name)!r}; resume with the same "
                "options, or give another --out"
            )


def _photos(part: Path) -> Iterator[tuple[Key, bool]]:
    """The photo of each row, and whether the row says why the photo has no maps."""
    try:
        file = pyarrow.parquet.ParquetFile(part)
        names = file.schema_arrow.names
        if missing := [name for name in SCHEMA.names[:-2] if name not in names]:
            raise ValueError(f"{part} has no column {missing[0]!r}; give the maps.parquet that explain wrote")
        for field in file.schema_arrow:
            if field.name in SCHEMA.names and _kind(field.type) != (wanted := _kind(SCHEMA.field(field.name).type)):
                raise ValueError(
                    f"{part} has {field.type} in the column {field.name!r}, which holds {wanted}; give the "
                    "maps.parquet that explain wrote"
                )
        columns = [name for name in ("path", "name", "error", "path_bytes") if name in names]
        rows = file.read(columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(part, error) from error
    for row in rows:
        key = _key(row)
        if not all(isinstance(text, str) for text in key):
            raise ValueError(f"{part} has a row without path or name; give the maps.parquet that explain wrote")
        yield key, bool(row.get("error"))


# Other tools write the same values in other types, such as large_string for string.
_KINDS = {
    "text": ("string", "large_string", "string_view"),
    "bytes": ("binary", "large_binary", "binary_view"),
    "whole numbers": tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "numbers": ("halffloat", "float", "double"),
}


def _kind(of_type: pyarrow.DataType) -> str:
    """What the values of a type are, in words."""
    return next((kind for kind, names in _KINDS.items() if str(of_type) in names), str(of_type))


def _damaged(part: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"{part} is damaged ({reason}); remove it, and run explain with --resume to make its maps again")
