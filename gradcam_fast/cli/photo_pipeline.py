"""Explains photo files and writes maps, pictures and a table of results, at the speed of the network."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..exceptions import PhotoError
from ..photo_decoding import own_pixel_limit
from ..photos import MAX_PIXELS
from ..pipeline.batch_explainer import BatchExplainer
from ..pipeline.output_lock import lock_folder, remove_parts
from ..pipeline.photo_files import wanted_name
from ..pipeline.photo_reading import load_photo, read_photo
from ..pipeline.pictures import opencv_on_one_thread
from ..pipeline.processors import cores
from ..pipeline.question import Question, settings_of
from ..pipeline.results import refuse_non_finite
from ..pipeline.stages import run_stages
from .output_files import FORMATS, PictureStyle, are_complete, suffixes, write_files
from .output_names import OutputNames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..pipeline.map_table import MapTable
    from ..pipeline.networks import Network
    from ..pipeline.photo_files import PhotoFile
    from ..pipeline.results import LoadedPhoto, PhotoResult
    from .console import Report

__all__ = ["RunSettings", "explain_photos", "table_path"]


@dataclass(frozen=True)
class RunSettings:
    """What is written for each photo, and how the work is done.

    Attributes:
        formats: of `FORMATS`, and ``parquet``.
        style: of the pictures.
        resume: whether photos whose files are complete are left out.
        batch_size: how many photos the network takes at once; about four times as many are in memory.
        device, dtype: where and in what type the network runs.
        workers: number of threads that read, and of threads that write.
        max_pixels: larger photos are refused. Each thread that reads needs at most 20 bytes of memory a pixel.
    """

    formats: tuple[str, ...] = ("panels",)
    style: PictureStyle = field(default_factory=PictureStyle)
    resume: bool = False
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    workers: int = field(default_factory=cores)
    max_pixels: int = MAX_PIXELS

    @property
    def file_formats(self) -> tuple[str, ...]:
        """The formats that have files of their own for each photo."""
        return tuple(name for name in self.formats if name in FORMATS)

    @property
    def draws_photos(self) -> bool:
        """Whether one of the formats shows the photo."""
        return any(FORMATS[name].shows_photo for name in self.file_formats)


def table_path(out: Path) -> Path:
    """The path of the table of maps."""
    return out / "maps.parquet"


def explain_photos(
    network: Network,
    photos: Sequence[PhotoFile],
    out: Path,
    question: Question,
    settings: RunSettings,
    report: Report,
) -> int:
    """Explain photo files, write the files that ``settings`` ask for to ``out``, and report each photo, in order.

    Returns:
        How many photos could not be explained; each was reported and skipped, and has a row in the table that says why.

    Raises:
        ValueError, FileExistsError: ``out`` has a table that this run cannot add to; raised before any work.
        RuntimeError: another run is writing to ``out``.
        Any other error in reading, explaining or writing ends the run; the files written until then are complete.
    """
    start = time.monotonic()
    note = settings_of(network, question)
    settings = replace(settings, style=replace(settings.style, note=note))
    with (
        lock_folder(out) as is_locked,
        _open_table(out, note, settings) as table,
        opencv_on_one_thread(),
        own_pixel_limit(),
    ):
        named = _named(photos, out, question.topk or 1, settings, table)
        if is_locked:
            remove_parts({table_path(out), *((out / name).parent for _, name, _ in named)})
        unexplained = [(path, name) for path, name, is_done in named if not is_done]
        report.begin(len(unexplained), len(photos))
        stages = run_stages(
            unexplained,
            lambda path_and_name: _load(*path_and_name, network, settings),
            BatchExplainer(network, question, settings.device, settings.dtype),
            lambda photo, result: _finish(photo, result, out, network, settings, table),
            batch=settings.batch_size,
            workers=settings.workers,
            skip=PhotoError,
        )
        with closing(stages):
            for path_and_name, outcome in stages:
                if isinstance(outcome, Exception):
                    if table is not None:
                        table.append_error(*path_and_name, outcome)
                    report.photo_skipped(outcome)
                    continue
                photo, result, files, rows = outcome
                if table is not None:
                    table.append(rows)
                report.photo_done(photo.path, result, files)
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _open_table(out: Path, note: dict[str, Any], settings: RunSettings) -> MapTable | nullcontext[None]:
    if "parquet" not in settings.formats:
        return nullcontext()
    from ..pipeline.map_table import MapTable

    return MapTable(table_path(out), note, resume=settings.resume)


def _named(
    photos: Sequence[PhotoFile], out: Path, count: int, settings: RunSettings, table: MapTable | None
) -> list[tuple[Path, str, bool]]:
    """Of each photo the path, the name of its files, and whether an earlier run has explained it."""
    file_suffixes = suffixes(settings.file_formats, count, settings.style)
    owners = {} if table is None else table.owners
    names = OutputNames((photo.path for photo in photos), out, file_suffixes, owners)
    named = []
    for photo in photos:
        name = names.claim(photo.path, wanted_name(photo))
        is_done = (
            settings.resume
            and (table is None or (str(photo.path), name) in table)
            and are_complete(out, name, photo.path, file_suffixes, settings.style)
        )
        named.append((photo.path, name, is_done))
    return named


def _load(path: Path, name: str, network: Network, settings: RunSettings) -> LoadedPhoto:
    photo = read_photo(path, settings.max_pixels)
    longest = settings.style.longest if settings.draws_photos else None
    return load_photo(photo, network.preprocess, path=path, name=name, longest=longest)


def _finish(
    photo: LoadedPhoto,
    result: PhotoResult,
    out: Path,
    network: Network,
    settings: RunSettings,
    table: MapTable | None,
) -> tuple[LoadedPhoto, PhotoResult, list[Path], Any]:
    """Write the files of one photo; return them, and its rows of the table."""
    refuse_non_finite(photo, result)
    rows = None if table is None else table.rows_of(photo, result)
    files = write_files(settings.file_formats, out, photo, result, settings.style, network.input_size)
    return replace(photo, pixels=None, input=None), result, files, rows
