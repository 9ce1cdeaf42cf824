"""The rows of a table of maps, one for each photo and class, and one for each photo that could not be explained."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy

try:
    import pyarrow
except ImportError as error:
    raise ImportError("tables are written with pyarrow, which is not installed; run pip install pyarrow") from error

from ..exceptions import PhotoError

if TYPE_CHECKING:
    from pathlib import Path

    from .results import LoadedPhoto, PhotoResult

__all__ = ["SCHEMA", "SETTINGS_KEY", "error_row", "path_columns", "record_batch", "rows_of", "schema_for"]

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
# In the schema's metadata: how the maps were made.
SETTINGS_KEY = b"gradcam_fast"


def schema_for(settings: dict[str, Any]) -> pyarrow.Schema:
    """The schema of a table whose maps were made with ``settings``."""
    return SCHEMA.with_metadata({SETTINGS_KEY: json.dumps(settings)})


def record_batch(path: Path | str, rows: list[dict[str, Any]], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    """The rows of one photo as Arrow.

    Raises:
        PhotoError: a value does not fit the table.
    """
    try:
        return pyarrow.RecordBatch.from_pylist(rows, schema=schema)
    except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError, ValueError) as error:
        raise PhotoError(f"{path}: does not fit the table ({' '.join(str(error).split())})") from error


def error_row(path: Path | str, name: str, error: Exception) -> dict[str, Any]:
    """The row that says why a photo has no maps."""
    return {**path_columns(path), "name": name, **NOTHING, "error": _utf8(str(error))}


def rows_of(photo: LoadedPhoto, result: PhotoResult) -> list[dict[str, Any]]:
    """The rows of one photo, one for each class."""
    left, top, right, bottom = photo.box
    levels = (result.maps * 255).round().astype(numpy.uint8)
    common = {
        **path_columns(photo.path),
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


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def path_columns(path: Path | str) -> dict[str, Any]:
    """The columns of a path: readable text, and the bytes if the text does not say them all."""
    try:
        text, data = str(path).encode().decode(), None
    except UnicodeEncodeError:
        data = os.fsencode(path)
        text = data.decode("utf-8", "backslashreplace")
    return {"path": text, "path_bytes": data}
