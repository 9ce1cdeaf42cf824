"""Explains photo files and writes maps, pictures and a table of results, at the speed of the network."""

from __future__ import annotations

import math
import os
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from .. import Explainer
from ..exceptions import PhotoError
from ..features import feature_maps
from ..photos import MAX_PIXELS
from ..probabilities import probabilities_of
from .output_files import FORMATS, PictureStyle, are_complete, suffixes, write_files
from .output_lock import lock_folder, remove_parts
from .output_names import OutputNames, wanted_name
from .photo_files import own_pixel_limit, read_photo
from .pictures import opencv_on_one_thread, shown_part
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
    options: ExplainOptions,
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
    note: dict[str, Any] = {
        "model": network.title,
        "input": list(network.input_size),
        "layer": options.layer,
        "method": options.method,
        "target": options.target,
        "topk": options.topk,
        "probabilities": network.probabilities,
    }
    settings = replace(settings, style=replace(settings.style, note=note))
    with (
        lock_folder(out) as is_locked,
        _open_table(out, note, settings) as table,
        opencv_on_one_thread(),
        own_pixel_limit(),
    ):
        named = _named(photos, out, options.topk or 1, settings, table)
        if is_locked:
            remove_parts({table_path(out), *((out / name).parent for _, name, _ in named)})
        unexplained = [(path, name) for path, name, is_done in named if not is_done]
        report.begin(len(unexplained), len(photos))
        stages = run_stages(
            unexplained,
            lambda path_and_name: _load(*path_and_name, network, settings),
            BatchExplainer(network, options, settings.device, settings.dtype),
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
    from .map_table import MapTable

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
    box = network.preprocess.seen_box(photo.size)
    pixels = numpy.asarray(shown_part(photo, box, settings.style.longest)) if settings.draws_photos else None
    return LoadedPhoto(path, name, photo.size, box, pixels, network.preprocess(photo).images)


def _finish(
    photo: LoadedPhoto,
    result: PhotoResult,
    out: Path,
    network: Network,
    settings: RunSettings,
    table: MapTable | None,
) -> tuple[LoadedPhoto, PhotoResult, list[Path], Any]:
    """Write the files of one photo; return them, and its rows of the table."""
    if not all(map(math.isfinite, result.scores)):
        raise PhotoError(
            f"{photo.path}: the network returns {result.scores[0]} for it; check the weights, or give --dtype float32"
        )
    rows = None if table is None else table.rows_of(photo, result)
    files = write_files(settings.file_formats, out, photo, result, settings.style, network.input_size)
    return replace(photo, pixels=None, input=None), result, files, rows


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
        return _fetch(explanation, self.network.class_names, self.network.probabilities)

    def _explainer_for(self, image: torch.Tensor) -> Explainer:
        found = feature_maps(self.network.model, image, layer=self.options.layer)
        maps = found if isinstance(found, list) else [found]  # several where the network has two trunks
        grid = max((tuple(of_layer.activations.shape[2:]) for of_layer in maps), key=math.prod)
        layers = [of_layer.layer for of_layer in maps]
        return Explainer(self.network.model, layer=layers, method=self.options.method, size=grid)


def _fetch(explanation: Explanation, names: Sequence[str], rule: str | None) -> Callable[[], list[PhotoResult]]:
    assert explanation.target is not None  # ExplainOptions ask for classes, never for a callable
    several = explanation.target.dim() == 2
    per_map = (explanation.target, explanation.score, explanation.raw_min, explanation.raw_max, explanation.valid)
    logits = explanation.logits.flatten(1)
    probabilities = probabilities_of(logits, rule)
    logits = logits.float()
    target = explanation.target if several else explanation.target[:, None]
    best = logits.topk(min(5, logits.shape[1]))
    tensors = [
        explanation.heatmap if several else explanation.heatmap[:, None],
        *(values if several else values[:, None] for values in per_map),
        probabilities.gather(1, target),
        probabilities.gather(1, best.indices),
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
    classes, scores, low, high, valid, probabilities, best_shares, best_scores, best_classes = row
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
        best=tuple(
            (names[number], number, share, score)
            for number, share, score in zip(best_classes, best_shares, best_scores, strict=True)
        ),
    )
