"""What one process does with a batch of photos: rows with paths or bytes in, rows with maps out, as Arrow tables."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

try:
    import pyarrow
except ImportError as error:
    raise ImportError("batches are Arrow tables, and pyarrow is not installed; run pip install pyarrow") from error

from .. import Explainer
from ..exceptions import PhotoError, UnreadablePhotoError
from ..photo_decoding import own_pixel_limit
from ..photos import MAX_PIXELS
from ..pipeline.batch_explainer import BatchExplainer
from ..pipeline.map_rows import error_row, path_columns, record_batch, rows_of, schema_for
from ..pipeline.photo_files import PhotoFile, wanted_name
from ..pipeline.photo_reading import load_photo, read_photo
from ..pipeline.pictures import opencv_on_one_thread
from ..pipeline.question import settings_of
from ..pipeline.results import refuse_non_finite
from ..pipeline.stages import run_stages
from .remote_files import is_address, read_remote

if TYPE_CHECKING:
    from ..pipeline.map_table import Key
    from ..pipeline.network_source import NetworkSource
    from ..pipeline.networks import Network
    from ..pipeline.question import Question
    from ..pipeline.results import LoadedPhoto, PhotoResult

__all__ = ["Explain", "keys_of", "table_of"]


@dataclass(frozen=True)
class Explain:
    """Explains the photos of Arrow tables: one row for each photo and class, or one that says why there is no map.

    An instance holds plain values, so that it can be pickled and sent to other machines. The network is loaded in the
    process that explains, when the first photos come or `load` is called, once for all equal instances.

    Args:
        source: where the network comes from.
        target, topk, layer, method: what is asked, as in :meth:`gradcam_fast.pipeline.networks.Network.ask`.
        batch_size: how many photos the network takes at once.
        threads: how many threads compute, and how many read photos; None leaves torch's number and reads with one.
        max_pixels: larger photos get an error.

    Example:
        >>> import pyarrow
        >>> from gradcam_fast.batch import Explain
        >>> from gradcam_fast.pipeline.network_source import NetworkSource
        >>> explain = Explain(NetworkSource("resnet18", weights="random"))
        >>> maps = explain(pyarrow.table({"path": ["no.jpg", "empty.png"], "bytes": [None, b""]}))
        >>> for error in maps["error"].to_pylist():
        ...     print(error)
        no.jpg: its row has no bytes
        empty.png: not a photo in a format that Pillow reads
    """

    source: NetworkSource
    target: str | int | None = None
    topk: int | None = None
    layer: str | None = None
    method: str = "gradcam"
    batch_size: int = 32
    threads: int | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def schema(self) -> pyarrow.Schema:
        """The columns of the result, with how the maps are made in the schema's metadata."""
        return schema_for(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """How the maps are made, see :func:`gradcam_fast.pipeline.question.settings_of`.

        The network is loaded for it, but not moved to its device, which another machine may have.

        Raises:
            ValueError, FileNotFoundError, ImportError: as for `load`.
        """
        return settings_of(*self.ask())

    def ask(self) -> tuple[Network, Question]:
        """The network, and the question that is asked of each photo.

        Raises:
            ValueError, FileNotFoundError, ImportError: as for `load`.
        """
        return _asked(self)

    def load(self) -> BatchExplainer:
        """Load the network into this process, unless it is there.

        Raises:
            ValueError, FileNotFoundError, ImportError: as :meth:`~.NetworkSource.load`, :meth:`~.Network.ask` and
                `BatchExplainer`.
        """
        return _loaded(self)

    def __call__(self, photos: pyarrow.Table | pyarrow.RecordBatch) -> pyarrow.Table:
        """Explain the photos of a table.

        Args:
            photos: a row for each photo. ``path`` is text: of a file, or the address of a remote one, such as
                ``s3://bucket/cat.jpg``. ``bytes``, if there is such a column, is the whole file; then nothing is read.
                ``name`` is the path of the photo's pictures, and is made from the path where it is missing.
                ``path_bytes`` is the path where it is not UTF-8. Other columns are left out.

        Returns:
            Rows in the order of the photos, with the columns of `schema`. ``map`` holds ``map_height`` * ``map_width``
            levels from 0 to 255.

        Raises:
            ValueError: a column is missing or of another type.
        """
        return pyarrow.Table.from_batches(self._explained(photos), schema=self.schema).combine_chunks()

    def lists(self, photos: pyarrow.Table | pyarrow.RecordBatch) -> pyarrow.ListArray:
        """The rows of each photo as one list, for engines whose functions return one value for each row, as Daft's.

        Args:
            photos: as for a call.

        Returns:
            A list for each photo, in order, of structs with the columns of `schema`.

        Raises:
            ValueError: a column is missing or of another type.
        """
        of_photos = self._explained(photos)
        ends = itertools.accumulate((len(rows) for rows in of_photos), initial=0)
        rows = pyarrow.Table.from_batches(of_photos, schema=self.schema).combine_chunks()
        structs = pyarrow.StructArray.from_arrays(
            [column.combine_chunks() for column in rows.columns], fields=list(self.schema)
        )
        return pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), structs)

    def batches(self, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        """Explain batch after batch, as Spark's ``mapInArrow`` asks for it."""
        for batch in batches:
            yield from self(batch).to_batches()

    def _explained(self, photos: pyarrow.Table | pyarrow.RecordBatch) -> list[pyarrow.RecordBatch]:
        """The rows of each photo, in order."""
        items = list(_items(photos))
        explainer = self.load()
        schema = self.schema
        rows: list[pyarrow.RecordBatch] = []
        with opencv_on_one_thread(), own_pixel_limit():
            stages = run_stages(
                items,
                lambda item: self._read(item, explainer),
                explainer,
                lambda photo, result: _rows(photo, result, schema),
                batch=self.batch_size,
                workers=self.threads or 1,
                skip=PhotoError,
            )
            with closing(stages):
                for item, outcome in stages:
                    if isinstance(outcome, Exception):
                        outcome = record_batch(item.path, [error_row(item.path, item.name, outcome)], schema)
                    rows.append(outcome)
        return rows

    def _read(self, item: _Item, explainer: BatchExplainer) -> LoadedPhoto:
        photo = read_photo(self._file(item), self.max_pixels, name=item.path)
        return load_photo(photo, explainer.network.preprocess, path=item.path, name=item.name)

    def _file(self, item: _Item) -> str | bytes:
        if not item.has_bytes:
            return read_remote(item.path, self.max_pixels) if is_address(item.path) else item.path
        if item.data is None:
            raise UnreadablePhotoError(f"{item.path}: its row has no bytes")
        return item.data


@functools.lru_cache(maxsize=1)
def _asked(explain: Explain) -> tuple[Network, Question]:
    network = explain.source.load()
    question = network.ask(target=explain.target, topk=explain.topk, layer=explain.layer, method=explain.method)
    if network.explain is None:  # refuses an unknown layer or method before anything is sent to other machines
        Explainer(network.model, layer=question.layer, method=question.method)
    return network, question


@functools.lru_cache(maxsize=1)
def _loaded(explain: Explain) -> BatchExplainer:
    if explain.threads is not None:
        torch.set_num_threads(explain.threads)
    return BatchExplainer(*explain.ask(), *explain.source.placement())


def _rows(photo: LoadedPhoto, result: PhotoResult, schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    refuse_non_finite(photo, result)
    return record_batch(photo.path, rows_of(photo, result), schema)


class _Item(NamedTuple):
    """One photo: its path, the name of its pictures, and its bytes where the table has them."""

    path: str
    name: str
    has_bytes: bool
    data: bytes | None


_TYPES = {
    "path": (pyarrow.string(), pyarrow.large_string()),
    "name": (pyarrow.string(), pyarrow.large_string()),
    "path_bytes": (pyarrow.binary(), pyarrow.large_binary()),
    "bytes": (pyarrow.binary(), pyarrow.large_binary()),
}


def table_of(photos: Iterable[Key]) -> pyarrow.Table:
    """A table of photos, from the path and the name of each."""
    rows = [{**path_columns(path), "name": name} for path, name in photos]
    columns = ("path", "name", "path_bytes")
    return pyarrow.Table.from_pylist(rows, pyarrow.schema([(name, _TYPES[name][0]) for name in columns]))


def keys_of(photos: pyarrow.Table) -> list[Key]:
    """The path and the name of each photo of a table.

    Raises:
        ValueError: as for `Explain`.
    """
    return [(item.path, item.name) for item in _items(photos)]


def _check_columns(schema: pyarrow.Schema) -> None:
    if "path" not in schema.names:
        raise ValueError(
            f"the table of photos has the columns {', '.join(schema.names)}, and none named path; rename the one that "
            "says where a photo is, and the one with its file, if there is one, to bytes"
        )
    for name, types in _TYPES.items():
        if name in schema.names and schema.field(name).type not in (*types, pyarrow.null()):
            raise ValueError(f"the column {name} is of type {schema.field(name).type}; cast it to {types[0]}")


def _items(photos: pyarrow.Table | pyarrow.RecordBatch) -> Iterator[_Item]:
    _check_columns(photos.schema)
    known = [name for name in _TYPES if name in photos.schema.names]
    has_bytes = "bytes" in known
    for row in photos.select(known).to_pylist():
        text, data = row["path"], row.get("path_bytes")
        if text is None:
            raise ValueError("a row of the table of photos has no path; leave such rows out")
        path = text if data is None else os.fsdecode(data)
        yield _Item(path, row.get("name") or wanted_name(PhotoFile(Path(path))), has_bytes, row.get("bytes"))
