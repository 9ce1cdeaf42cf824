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
from typing import TYPE_CHECKING, Any

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    raise ImportError("tables are written with pyarrow, which is not installed; run pip install pyarrow") from error

from .map_rows import SCHEMA, SETTINGS_KEY, error_row, record_batch, rows_of, schema_for
from .output_lock import PART_SUFFIX

if TYPE_CHECKING:
    from .results import LoadedPhoto, PhotoResult

__all__ = ["ROWS_PER_PART", "Key", "MapTable", "contents", "errors", "owners", "read", "write_part"]

# (path, name) of a photo.
Key = tuple[str, str]
# What pyarrow raises where the bytes of a file are not those that were written; text may be no UTF-8.
_DAMAGE = (pyarrow.ArrowException, OSError, UnicodeDecodeError)

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
        self.schema = schema_for(settings)
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
        return (str(photo.path), photo.name), record_batch(photo.path, rows_of(photo, result), self.schema)

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
            self._add(record_batch(path, [error_row(path, name, error)], self.schema))

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
        table = pyarrow.Table.from_batches(self.pending, schema=self.schema)
        self.parts.add(write_part(self.folder, self.number, uuid.uuid4().hex, table))
        self.number += 1
        self.pending = []
        self.written = time.monotonic()

    def __enter__(self) -> MapTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def write_part(folder: Path, number: int, unique: str, table: pyarrow.Table) -> Path:
    """Write rows as one part, which is complete or absent at any time, and return its path.

    Args:
        number: the place of the part among the others.
        unique: a name that no other run uses; a part of the same number and name is replaced.
    """
    part = folder / f"part-{number:05}-{unique}.parquet"
    # Readers of a folder ignore names that start with a dot.
    unfinished = part.with_name(f".{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        pyarrow.parquet.write_table(table, unfinished, compression="zstd")
        os.replace(unfinished, part)
    finally:
        unfinished.unlink(missing_ok=True)
    return part


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
        except _DAMAGE as error:
            raise _damaged(part, error) from error


def errors(table: Path) -> Iterator[tuple[Key, str]]:
    """Each photo of a table that has no maps, as (path, name), and why.

    Raises:
        ValueError: a part is damaged.
    """
    for part in _parts(table):
        try:
            rows = pyarrow.parquet.read_table(part, filters=[("error", "!=", "")]).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(part, error) from error
        yield from ((_key(row), row["error"]) for row in rows)


def owners(table: Path) -> dict[str, str]:
    """The path of the photo that has a name in a table, by the name in lower case.

    Raises:
        ValueError: a part is damaged.
    """
    return {name.casefold(): path for part in _parts(table) for (path, name), _ in _photos(part)}


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
    except _DAMAGE as error:
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
