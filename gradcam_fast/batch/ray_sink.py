"""Where Ray Data writes maps: parts of the table that the command line writes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from ray.data import Datasink
from ray.data.block import BlockAccessor
from ray.data.datasource import FilenameProvider

from ..pipeline.map_table import ROWS_PER_PART, write_part

if TYPE_CHECKING:
    from ray.data.block import Block

__all__ = ["PartNames", "TableSink"]


class TableSink(Datasink[None]):
    """Writes rows as parts of a table in a folder that all machines share.

    A part is written whole and then renamed. A write that Ray repeats replaces its part.

    Args:
        folder: of the table; it exists.
        schema: of the table, with its metadata.
        first: the number of the first part.
        rows_per_part: how many rows a part has at least, except for the last one.
    """

    def __init__(self, folder: Path, schema: pyarrow.Schema, first: int = 0, rows_per_part: int = ROWS_PER_PART):
        self._folder, self._schema, self._first, self._rows = folder, schema, first, rows_per_part
        self._unique = uuid.uuid4().hex

    @property
    def min_rows_per_write(self) -> int:
        return self._rows

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        # A block without rows may have no columns either.
        rows = [table.cast(self._schema) for table in tables if len(table)]
        if rows:
            write_part(self._folder, self._first + ctx.task_idx, self._unique, pyarrow.concat_tables(rows))


class PartNames(FilenameProvider):
    """Names for ``Dataset.write_parquet``, so that ``gradcam-fast render`` takes its folder for a table of maps.

    Example:
        >>> from gradcam_fast.batch import PartNames
        >>> PartNames().get_filename_for_task("3f2a", 7)
        'part-00007-3f2a.parquet'
    """

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        return f"part-{task_index:05}-{write_uuid}.parquet"
