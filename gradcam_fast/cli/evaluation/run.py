"""Runs an evaluation over photo files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...exceptions import PhotoError
from ...photo_decoding import own_pixel_limit
from ...pipeline.output_lock import lock_folder
from ...pipeline.photo_reading import load_photo, read_photo
from ...pipeline.stages import run_stages
from ..console import ProgressBar, complain, photo_count
from .judge import Judge
from .report import write_report
from .value_table import ValueTable

if TYPE_CHECKING:
    from ...pipeline.networks import Network
    from ...pipeline.photo_files import PhotoFile
    from ...pipeline.results import LoadedPhoto
    from .plan import Plan
    from .value_table import PhotoValues

__all__ = ["EvaluationSettings", "evaluate_photos"]

# Each is hundreds of predictions. An interruption loses so many at most.
_PHOTOS_AT_ONCE = 4


@dataclass(frozen=True)
class EvaluationSettings:
    """How the work is done.

    Attributes:
        resume: whether the values of an earlier run are kept.
        batch_size: the most images that the network takes at once.
        device, dtype: where and in what type the network runs.
        workers: number of threads that read photos.
        max_pixels: larger photos are refused.
        bar: whether a progress bar is shown; None: only if standard error is a terminal.
    """

    resume: bool
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    workers: int
    max_pixels: int
    bar: bool | None = None


def evaluate_photos(
    network: Network, photos: Sequence[PhotoFile], out: Path, plan: Plan, settings: EvaluationSettings
) -> tuple[ValueTable, int]:
    """Measure photos, add the values of each to ``out``/values.csv as soon as they are known, and write the report.

    Returns:
        The values, and how many photos could not be read; each of these was named and skipped.

    Raises:
        ValueError, FileExistsError: ``out`` has files that this run cannot continue or replace; raised before any work.
        RuntimeError: another run is writing to ``out``.
        KeyboardInterrupt: the values until then are kept, and the same command continues with ``--resume``.
    """
    paths = list(dict.fromkeys(photo.path for photo in photos))
    judge = Judge(network, plan, settings, {path: place for place, path in enumerate(paths)})
    skipped = 0
    with lock_folder(out), own_pixel_limit():
        table = ValueTable(out, plan.settings(network), plan.rows, plan.metrics, resume=settings.resume)
        unmeasured = [path for path in paths if path not in table]
        wants_bar = sys.stderr.isatty() if settings.bar is None else settings.bar

        def load(path: Path) -> LoadedPhoto:
            photo = read_photo(path, settings.max_pixels)
            loaded = load_photo(photo, network.preprocess, path=path, name=path.name)
            if plan.boxes is not None:
                plan.boxes.boxes_of(path, photo.size)  # refuses boxes of another photo
            return loaded

        def measure(batch: list[LoadedPhoto]) -> Callable[[], list[PhotoValues]]:
            return lambda: table.append(judge(batch))

        stages = run_stages(
            unmeasured,
            load,
            measure,
            lambda _, values: values,
            batch=min(_PHOTOS_AT_ONCE, settings.batch_size),
            workers=settings.workers,
            skip=PhotoError,
        )
        with ProgressBar("photos", len(unmeasured)) if wants_bar else nullcontext() as bar, closing(stages):
            try:
                for done, (_, outcome) in enumerate(stages, 1):
                    if isinstance(outcome, Exception):
                        skipped += 1
                        _say(bar, f"{outcome}; skipped")
                    if bar is not None:
                        bar.update(done, len(unmeasured))
            except KeyboardInterrupt:
                _say(
                    bar,
                    f"interrupted after {photo_count(len(table.photos))}; run the same command with --resume to go on",
                )
                raise
        if table.photos:
            write_report(network, table, out, plan, settings)
    return table, skipped


def _say(bar: Any, message: str) -> None:
    if bar is None:
        complain(message)
    else:
        bar.print_above(complain, message)
