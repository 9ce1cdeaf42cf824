"""Explains photo files and writes maps, pictures and a table of results, at the speed of the network."""

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

from .. import Explainer
from ..features import feature_maps
from .output_files import FORMATS, PictureStyle, are_complete, output_names, suffixes, write_files
from .photo_files import UnreadablePhotoError, read_photo
from .pictures import opencv_on_one_thread, shrink
from .results import ExplainOptions, LoadedPhoto, PhotoResult
from .stages import run_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .. import Explanation
    from .console import Report
    from .map_table import MapTable
    from .networks import Network
    from .photo_files import PhotoFile

__all__ = ["BatchExplainer", "RunSettings", "cores", "explain_photos", "table_path"]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """

    formats: tuple[str, ...] = ("panels",)
    style: PictureStyle = field(default_factory=PictureStyle)
    resume: bool = False
    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    workers: int = field(default_factory=cores)

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
    options: ExplainOptions,
    settings: RunSettings,
    report: Report,
) -> int:
    """Explain photo files, write the files that ``settings`` ask for to ``out``, and report each photo, in order.

    Returns:
        How many photos could not be read; each was reported and skipped.

    Raises:
        ValueError, FileExistsError: ``out`` has a table that this run cannot add to; raised before any work.
        Any error in reading, explaining or writing ends the run; the files written until then are complete.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {
        "model": network.title,
        "input": list(network.preprocess.size),
        "layer": options.layer,
        "method": options.method,
        "target": options.target,
        "topk": options.topk,
    }
    settings = replace(settings, style=replace(settings.style, note=note))
    with _open_table(out, note, settings) as table, opencv_on_one_thread():
        unexplained = list(_unexplained(photos, out, options.topk or 1, settings, table))
        report.begin(len(unexplained), len(photos))
        stages = run_stages(
            unexplained,
            lambda path_and_name: _load(*path_and_name, network, settings),
            BatchExplainer(network, options, settings.device, settings.dtype),
            lambda photo, result: (photo, result, _write(photo, result, out, network, settings)),
            batch=settings.batch_size,
            workers=settings.workers,
            skip=UnreadablePhotoError,
        )
        with closing(stages):
            for _, outcome in stages:
                if isinstance(outcome, Exception):
                    report.photo_skipped(outcome)
                    continue
                photo, result, files = outcome
                if table is not None:
                    table.append(replace(photo, pixels=None), result)
                report.photo_done(photo.path, result, files)
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _open_table(out: Path, note: dict[str, Any], settings: RunSettings) -> MapTable | nullcontext[None]:
    if "parquet" not in settings.formats:
        return nullcontext()
    from .map_table import MapTable

    return MapTable(table_path(out), note, resume=settings.resume)


def _unexplained(
    photos: Sequence[PhotoFile], out: Path, count: int, settings: RunSettings, table: MapTable | None
) -> Iterator[tuple[Path, str]]:
    """The path, and the name of its pictures, of each photo that this run has to explain."""
    file_suffixes = suffixes(settings.file_formats, count, settings.style)
    for photo, name in zip(photos, output_names(photos, out, file_suffixes), strict=True):
        is_done = (
            settings.resume
            and (table is None or (str(photo.path), name) in table)
            and are_complete(out, name, photo.path, file_suffixes, settings.style)
        )
        if not is_done:
            yield photo.path, name


def _load(path: Path, name: str, network: Network, settings: RunSettings) -> LoadedPhoto:
    photo = read_photo(path)
    box = network.preprocess.seen_box(photo.size)
    pixels = numpy.asarray(shrink(photo.crop(box), settings.style.longest)) if settings.draws_photos else None
    return LoadedPhoto(path, name, photo.size, box, pixels, network.preprocess([photo]))


def _write(photo: LoadedPhoto, result: PhotoResult, out: Path, network: Network, settings: RunSettings) -> list[Path]:
    return write_files(settings.file_formats, out, photo, result, settings.style, network.preprocess.size)


class BatchExplainer:
    """Explains batches of photos with one network, one forward per batch, at the resolution of the layer.

    A larger heatmap is the same map resized, and is drawn on the CPU. So for a map of 7x7 only 49 numbers are copied
    from an accelerator, instead of 50,176.

    Args:
        device, dtype: where and in what type the network runs; it is moved there.

    Raises:
        ValueError: an unknown layer or method.
    """

    def __init__(self, network: Network, options: ExplainOptions, device: torch.device, dtype: torch.dtype) -> None:
        self.network = replace(network, model=network.model.to(device, dtype))
        self.options = options
        self.device = device
        self.dtype = dtype
        self.explainer: Callable[..., Explanation] | None = network.explain
        if self.explainer is None:
            # Refuses an unknown layer or method before any photo is read.
            Explainer(network.model, layer=options.layer, method=options.method)

    def __call__(self, photos: Sequence[LoadedPhoto]) -> Callable[[], list[PhotoResult]]:
        """Start to explain a batch; the function returned waits for the results."""
        images = torch.cat([photo.input for photo in photos if photo.input is not None])
        if self.device.type == "cuda":
            images = images.pin_memory()
        images = images.to(self.device, self.dtype, non_blocking=True)
        explainer = self.explainer = self.explainer or self._explainer_for(images[:1])
        # For one class, topk=None gives the same maps as topk=1, without an axis of classes in the gradients.
        topk = None if self.options.topk == 1 else self.options.topk
        explanation = explainer(images, self.options.target, topk)
        return _fetch(explanation, self.network.class_names)

    def _explainer_for(self, image: torch.Tensor) -> Explainer:
        maps = feature_maps(self.network.model, image, layer=self.options.layer)
        grid = tuple(maps.activations.shape[2:])
        return Explainer(self.network.model, layer=maps.layer, method=self.options.method, size=grid)


def _fetch(explanation: Explanation, names: Sequence[str]) -> Callable[[], list[PhotoResult]]:
    assert explanation.target is not None  # ExplainOptions ask for classes, never for a callable
    several = explanation.target.dim() == 2
    per_map = (explanation.target, explanation.score, explanation.raw_min, explanation.raw_max, explanation.valid)
    logits = explanation.logits.float().flatten(1)
    # What a single output says about the probability depends on how the network was trained, which is not known.
    probabilities = logits.softmax(1) if logits.shape[1] > 1 else torch.full_like(logits, torch.nan)
    target = explanation.target if several else explanation.target[:, None]
    best = probabilities.topk(min(5, logits.shape[1]))
    tensors = [
        explanation.heatmap if several else explanation.heatmap[:, None],
        *(values if several else values[:, None] for values in per_map),
        probabilities.gather(1, target),
        *best,
    ]
    # Copies from an accelerator are queued behind the batch, and this event behind the copies: waiting for it does not
    # wait for the next batch.
    on_host = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    copied = torch.cuda.Event() if explanation.heatmap.is_cuda else None
    if copied:
        copied.record()

    def results() -> list[PhotoResult]:
        if copied:
            copied.synchronize()
        maps, *other_results = on_host
        rows = zip(*(tensor.tolist() for tensor in other_results), strict=True)
        return [
            _result(photo_maps.numpy(), row, explanation, names) for photo_maps, row in zip(maps, rows, strict=True)
        ]

    return results


def _result(maps: Any, row: Sequence[Any], explanation: Explanation, names: Sequence[str]) -> PhotoResult:
    classes, scores, low, high, valid, probabilities, best, best_classes = row
    return PhotoResult(
        classes=tuple(classes),
        names=tuple(names[number] for number in classes),
        probabilities=tuple(probabilities),
        scores=tuple(scores),
        maps=maps,
        raw_min=tuple(low),
        raw_max=tuple(high),
        valid=tuple(valid),
        layer=str(explanation.layer),
        best=tuple((names[number], number, share) for share, number in zip(best, best_classes, strict=True)),
    )
