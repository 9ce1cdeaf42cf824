"""Photo files in, maps and pictures out, at the speed of the network.

Knows nothing of options, exit codes or particular networks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from . import formats
from .answers import Answer, Question, Subject
from .drawing import opencv_on_one_thread, shrunk
from .formats import FORMATS, Style
from .looking import Look
from .naming import names_for
from .photos import UnreadablePhotoError, read_photo
from .report import Report
from .stages import flow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .gathering import Photo
    from .map_table import MapTable
    from .networks import Network

__all__ = ["Plan", "Question", "cores", "explain_files", "table_path"]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Plan:
    """What is made of the photos, and how the work is done.

    Attributes:
        formats: of `FORMATS`, and ``parquet``.
        style: of the pictures.
        resume: whether photos whose files are all there are passed over.
        batch_size: how many photos the network sees at once; some four times as many are in memory.
        device, dtype: where and in what type the network runs.
        workers: threads that read, and as many that write.
    """

    formats: tuple[str, ...] = ("panels",)
    style: Style = field(default_factory=Style)
    resume: bool = False
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    workers: int = field(default_factory=cores)

    @property
    def files(self) -> tuple[str, ...]:
        """The formats that are files of their own for each photo."""
        return tuple(name for name in self.formats if name in FORMATS)


def table_path(out: Path) -> Path:
    """Where the table of maps is kept."""
    return out / "maps.parquet"


def explain_files(
    network: Network, photos: Sequence[Photo], out: Path, question: Question, plan: Plan, report: Report
) -> int:
    """Explain photo files, keep what the plan asks for in ``out``, and report on each photo, in order.

    Returns:
        How many photos could not be read; each was complained of and skipped.

    Raises:
        ValueError, FileExistsError: a table in ``out`` that this run cannot go on with, before anything is done.
        Any fault in reading, explaining or writing ends the run; the files written so far are whole.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {
        "model": network.title,
        "input": list(network.preprocess.size),
        "layer": question.layer,
        "method": question.method,
        "target": question.target,
        "topk": question.topk,
    }
    plan = replace(plan, style=replace(plan.style, note=note))
    with _table(out, note, plan) as table, opencv_on_one_thread():
        todo = list(_todo(photos, out, question.topk or 1, plan, table))
        report.begin(len(todo), len(photos))
        with closing(
            flow(
                todo,
                lambda work: _read(work, network, plan),
                Look(network, question, plan.device, plan.dtype),
                lambda subject, answer: (subject, answer, _make(subject, answer, out, network, plan)),
                batch=plan.batch_size,
                workers=plan.workers,
                skip=UnreadablePhotoError,
            )
        ) as flowing:
            for _, made in flowing:
                if isinstance(made, Exception):
                    report.skipped(made)
                    continue
                subject, answer, files = made
                if table is not None:
                    table.append(replace(subject, pixels=None), answer)
                report.explained(subject.path, answer, files)
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _table(out: Path, settings: dict[str, Any], plan: Plan) -> MapTable | nullcontext[None]:
    if "parquet" not in plan.formats:
        return nullcontext()
    from .map_table import MapTable

    return MapTable(table_path(out), settings, resume=plan.resume)


def _todo(
    photos: Sequence[Photo], out: Path, count: int, plan: Plan, table: MapTable | None
) -> Iterator[tuple[Path, str]]:
    endings = formats.suffixes(plan.files, count, plan.style)
    for photo, name in zip(photos, names_for(photos, out, endings), strict=True):
        done = (
            plan.resume
            and (table is None or (str(photo.path), name) in table)
            and formats.complete(out, name, photo.path, endings, plan.style)
        )
        if not done:
            yield photo.path, name


def _read(work: tuple[Path, str], network: Network, plan: Plan) -> Subject:
    path, name = work
    photo = read_photo(path)
    box = network.preprocess.seen_box(photo.size)
    pixels = None
    if any(FORMATS[each].pictures for each in plan.files):
        pixels = numpy.asarray(shrunk(photo.crop(box), plan.style.longest))
    return Subject(path, name, photo.size, box, pixels, network.preprocess([photo]))


def _make(subject: Subject, answer: Answer, out: Path, network: Network, plan: Plan) -> list[Path]:
    return formats.make(plan.files, out, subject, answer, plan.style, network.preprocess.size)
