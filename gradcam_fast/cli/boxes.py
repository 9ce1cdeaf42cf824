"""The subcommand ``boxes``: boxes and masks of the hot regions of photos, as COCO JSON."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy
import torch

from ..exceptions import PhotoError
from ..visual.placement import place
from . import options as cli_options
from .console import complain
from .exit_codes import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import SimpleNamespace

    from torch import Tensor

    from ..pipeline.networks import Network
    from ..pipeline.photo_files import PhotoFile
    from ..pipeline.question import Question
    from ..pipeline.results import LoadedPhoto, PhotoResult
    from .coco_file import PhotoRegions
    from .console import Report

__all__ = ["RegionSettings", "boxes", "write_regions"]


@dataclass(frozen=True)
class RegionSettings:
    """Which regions are written, and how the work is done.

    Attributes:
        threshold: the share of a map's maximum from which a pixel is hot.
        largest: whether only the largest region of each map is written.
        masks: whether the regions' masks are written, too.
        batch_size, device, dtype, workers, max_pixels: as in `RunSettings`.
    """

    threshold: float
    largest: bool
    masks: bool
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    workers: int
    max_pixels: int


@click.command(
    cls=cli_options.Command,
    params=[
        click.Argument(["photos"], metavar="PATH...", nargs=-1, required=True, help="Photos, folders or patterns."),
        *cli_options.NETWORK,
        *cli_options.grouped(
            "Explanation",
            cli_options.Option(
                ["--topk"],
                metavar="K",
                type=cli_options.positive,
                help="Explain the K most probable classes.  [default: 1]",
            ),
        ),
        *cli_options.EXPLANATION,
        *cli_options.grouped(
            "Output",
            cli_options.Option(
                ["-o", "--out"], metavar="FILE", type=Path, default="boxes.json", help="JSON file to write."
            ),
            cli_options.Option(
                ["--threshold"],
                metavar="T",
                type=cli_options.share,
                default=0.5,
                help="A pixel is hot from this share of the heatmap's maximum on.",
            ),
            cli_options.Option(["--largest"], is_flag=True, help="Write only the largest region of each heatmap."),
            cli_options.Option(["--masks"], is_flag=True, help="Write the regions' masks, too."),
        ),
        *cli_options.DEVICE,
        *cli_options.batch_size_option(32),
        *cli_options.WORKERS,
        *cli_options.MESSAGES,
        cli_options.DEBUG,
    ],
    epilog=f"""\
Example:
  gradcam-fast boxes photos/ --threshold 0.4 --masks -o boxes.json

The file:
  'images' are the photos, under the paths that were given. 'annotations' has
  one entry for each region, the largest of a heatmap first: its bbox (x, y,
  width, height in pixels of the upright photo), its area, the probability of
  the class as 'score' where it is known, and with --masks its 'segmentation' as
  run lengths, which pycocotools and other programs read. 'categories' are the
  network's classes, under their numbers.

{EXIT_CODES}""",
)
def boxes(options: SimpleNamespace) -> int:
    """Write boxes around the hot regions of photos, as COCO JSON.

    PATH is a photo, a folder of photos (with its subfolders), or a quoted pattern such as 'photos/**/*.png'.

    A region is a connected part of a heatmap that is hot; its box is a first guess at where the object is.
    """
    from ..pipeline.photo_files import find_photos
    from ..pipeline.processors import cores

    device, dtype = cli_options.placement_of(options)
    cli_options.check_folder(options.out.parent)
    empty_folders: list[str] = []
    photos = find_photos(options.photos, options.out, empty_folders.append)
    for message in empty_folders:
        complain(f"{message}; skipped")
    if not photos:
        return len(empty_folders)
    network = cli_options.network_of(options)
    question = cli_options.question_of(options, network, 1)
    settings = RegionSettings(
        threshold=options.threshold,
        largest=options.largest,
        masks=options.masks,
        batch_size=options.batch_size,
        device=device,
        dtype=dtype,
        workers=options.workers or cores(),
        max_pixels=options.max_pixels,
    )
    with cli_options.report_of(options) as report:
        return len(empty_folders) + write_regions(network, photos, options.out, question, settings, report)


def write_regions(
    network: Network,
    photos: Sequence[PhotoFile],
    out: Path,
    question: Question,
    settings: RegionSettings,
    report: Report,
) -> int:
    """Explain photos, and write the hot regions of their heatmaps to the file ``out``.

    Returns:
        How many photos could not be explained; each was reported and skipped.
    """
    from ..photo_decoding import own_pixel_limit
    from ..pipeline.batch_explainer import BatchExplainer
    from ..pipeline.photo_reading import load_photo, read_photo
    from ..pipeline.question import settings_of
    from ..pipeline.stages import run_stages
    from .coco_file import document
    from .output_files import write_whole

    start = time.monotonic()
    report.begin(len(photos), len(photos))

    def load(path: Path) -> LoadedPhoto:
        return load_photo(read_photo(path, settings.max_pixels), network.preprocess, path=path, name=path.name)

    def finish(photo: LoadedPhoto, result: PhotoResult) -> tuple[PhotoRegions, PhotoResult]:
        return _regions_of(photo, result, settings), result

    found = []
    with own_pixel_limit():
        stages = run_stages(
            [photo.path for photo in photos],
            load,
            BatchExplainer(network, question, settings.device, settings.dtype),
            finish,
            batch=settings.batch_size,
            workers=settings.workers,
            skip=PhotoError,
        )
        with closing(stages):
            for path, outcome in stages:
                if isinstance(outcome, Exception):
                    report.photo_skipped(outcome)
                    continue
                regions, result = outcome
                found.append(regions)
                report.photo_done(path, result, [])
    info = {"description": "hot regions of heatmaps", "threshold": settings.threshold, **settings_of(network, question)}
    write_whole(out, json.dumps(document(found, network.class_names, info)).encode())
    report.end(time.monotonic() - start, out)
    return report.unreadable


def _regions_of(photo: LoadedPhoto, result: PhotoResult, settings: RegionSettings) -> PhotoRegions:
    """The regions of all maps of a photo, in pixels of the photo."""
    from ..metrics import region_masks
    from .coco_file import PhotoRegions, Region

    regions = []
    for number, probability, valid, heatmap in zip(
        result.classes, result.probabilities, result.valid, result.maps, strict=True
    ):
        if not valid:
            continue
        heat = _on_photo(torch.from_numpy(heatmap), photo)
        for mask in region_masks(heat, settings.threshold, largest=settings.largest).numpy():
            rows, columns = (numpy.flatnonzero(mask.any(axis)) for axis in (1, 0))
            left, top, right, bottom = map(int, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            box = left, top, right - left, bottom - top
            regions.append(Region(number, box, int(mask.sum()), probability, mask if settings.masks else None))
    return PhotoRegions(Path(photo.path), photo.size, regions)


def _on_photo(heatmap: Tensor, photo: LoadedPhoto) -> Tensor:
    """The heatmap at the photo's pixels (H,W), scaled to [0,1]; below 0 where the network did not look."""
    heat, inside = place(heatmap, photo.size[::-1], tuple(map(float, photo.box)))  # type: ignore[arg-type]
    low, high = heat.amin(), heat.amax()
    return ((heat - low) / (high - low)).where(inside, -1)
