"""The subcommand ``evaluate``: which method and layer explain a network best, on one's own photos."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..methods import METHODS
from . import options as cli_options
from .console import complain, photo_count, tell
from .exit_codes import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import SimpleNamespace

    from ..metrics import Comparison
    from ..pipeline.networks import Network
    from ..pipeline.photo_files import PhotoFile
    from .coco_file import BoxFile
    from .evaluation import Plan

__all__ = ["evaluate"]

# Beside those of the photos' boxes; as in `metrics.METRICS`, which help must not import.
METRICS = ("insertion", "deletion", "road", "confidence_drop", "confidence_increase", "gini")
METRICS_OF_BOXES = ("pointing_game", "mass_accuracy", "rank_accuracy", "iou")


def names(known: Sequence[str] | None) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[str, ...]]:
    """A callback that splits texts such as ``gradcam,layercam`` into names of ``known`` (None: any), each once."""

    def split(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
        if unknown := [name for name in found if known is not None and name not in known]:
            raise click.BadParameter(f"{unknown[0]!r} is unknown; choose from {', '.join(known or ())}")
        return found

    return split


@click.command(
    cls=cli_options.Command,
    params=[
        click.Argument(["photos"], metavar="PATH...", nargs=-1, required=True, help="Photos, folders or patterns."),
        *cli_options.NETWORK,
        *cli_options.grouped(
            "Comparison",
            cli_options.Option(
                ["--methods"],
                metavar="NAME[,NAME...]",
                multiple=True,
                callback=names(METHODS),
                help=f"Methods to compare, of {', '.join(METHODS)}.  [default: gradcam]",
            ),
            cli_options.Option(
                ["--layers"],
                metavar="NAME[,NAME...]",
                multiple=True,
                callback=names(None),
                help="Layers at which each method is compared; 'gradcam-fast layers' lists the names, and 'auto' is "
                "the one that is found.  [default: auto]",
            ),
            cli_options.Option(
                ["--metrics"],
                metavar="NAME[,NAME...]",
                multiple=True,
                callback=names((*METRICS, *METRICS_OF_BOXES)),
                help="Columns of the table; see below. The first one decides on the best and worst photos.  [default: "
                "insertion, deletion, confidence_drop and gini; with --boxes those of boxes, too]",
            ),
            cli_options.Option(
                ["--boxes"],
                metavar="FILE",
                type=Path,
                help="Where the objects are: boxes as COCO JSON, in pixels of the upright photos.",
            ),
            cli_options.Option(
                ["--target"],
                metavar="CLASS",
                help="Explain this class in all photos: its number, from 0, or a part of its name.  [default: each "
                "photo's most probable class]",
            ),
        ),
        *cli_options.out_option("gradcam-fast-report"),
        *cli_options.grouped(
            "Output",
            cli_options.Option(
                ["--cases"],
                metavar="N",
                type=cli_options.positive,
                default=3,
                help="How many of the best, and of the worst, photos are shown for each method and layer.",
            ),
            cli_options.Option(
                ["--resume"], is_flag=True, help="Keep the values of an earlier run with the same options."
            ),
        ),
        *cli_options.DEVICE,
        *cli_options.batch_size_option(None, "4 on a CPU, 32 elsewhere"),
        *cli_options.WORKERS,
        cli_options.PROGRESS,
        cli_options.QUIET,
        cli_options.DEBUG,
    ],
    epilog=f"""\
Examples:
  gradcam-fast evaluate photos/ --methods gradcam,layercam,ablation
  gradcam-fast evaluate photos/ --methods gradcam --layers auto,_blocks.10
  gradcam-fast evaluate photos/ --boxes instances.json --metrics pointing_game

Metrics (up: higher is better; cost: predictions for each photo and row):
  insertion            up    score while the hottest pixels come    cost 28
  deletion             down  score while the hottest pixels go      cost 28
  road                 up    the same, pixels imputed (seconds)     cost 10
  confidence_drop      down  score lost if only the hot part stays  cost  1
  confidence_increase  up    whether the score even rises           cost  1
  gini                 up    how concentrated the heatmap is        cost  0
  pointing_game        up    whether the hottest pixel is in a box  cost  0
  mass_accuracy        up    share of the heat in the boxes         cost  0
  rank_accuracy        up    share of the hottest pixels there      cost  0
  iou                  up    overlap of hot pixels and boxes        cost  0
  The last four need --boxes.

Rows:
  Each method at each layer, and four baselines that every explanation should
  beat: random heat, a spot in the middle, the photo's edges, and the gradient
  of the pixels (saliency).

Files:
  DIR/index.html   the report: the table with confidence intervals, a chart,
                   pictures of the best and worst photos
  DIR/summary.csv  the table, also as summary.md and chart.png
  DIR/values.csv   the values of every photo, written as they are known. An
                   interrupted run is continued by the same command with
                   --resume.

{EXIT_CODES}""",
)
def evaluate(options: SimpleNamespace) -> int:
    """Measure which method and layer explain a network best.

    It is measured on your own photos, because the answer depends on them.

    PATH is a photo, a folder of photos (with its subfolders), or a quoted pattern such as 'photos/**/*.png'.

    Every heatmap is measured by how the network's score changes when the pixels that the heatmap calls important come
    or go, and by whether it is in the boxes, if these are given. The more photos, the narrower the confidence
    intervals: a few dozen tell large differences apart.
    """
    from ..metrics.subject import images_at_once
    from ..pipeline.photo_files import find_photos
    from ..pipeline.processors import cores
    from .evaluation import EvaluationSettings, evaluate_photos

    cli_options.refuse_package(options, "in which method and layer are fixed; give the network it was made of")
    _check_packages()
    device, dtype = cli_options.placement_of(options)
    cli_options.check_folder(options.out)
    box_file = _box_file(options)
    empty_folders: list[str] = []
    photos = find_photos(options.photos, options.out, empty_folders.append)
    for message in empty_folders:
        complain(f"{message}; skipped")
    if not photos:
        return len(empty_folders)
    _check_boxes(box_file, photos)
    network = cli_options.network_of(options)
    plan = _plan(options, network, box_file)
    settings = EvaluationSettings(
        resume=options.resume,
        batch_size=images_at_once(options.batch_size, device),
        device=device,
        dtype=dtype,
        workers=options.workers or cores(),
        max_pixels=options.max_pixels,
        bar=False if options.quiet and options.progress is None else options.progress,
    )
    table, skipped = evaluate_photos(network, photos, options.out, plan, settings)
    if table.photos and not options.quiet:
        tell(_summary(table.comparison(), plan))
        tell(f"\n{photo_count(len(table.photos))} evaluated; see {options.out / 'index.html'}")
    return len(empty_folders) + skipped


def _plan(options: SimpleNamespace, network: Network, boxes: BoxFile | None) -> Plan:
    from ..pipeline.question import QuestionError
    from .evaluation import Plan
    from .evaluation.plan import AUTO, DEFAULT_METRICS

    try:
        target = None if options.target is None else network.find_class(options.target)
    except QuestionError as error:
        raise ValueError(f"--{error}") from None
    metrics = options.metrics or (*DEFAULT_METRICS, *(METRICS_OF_BOXES if boxes else ()))
    return Plan(options.methods or ("gradcam",), options.layers or (AUTO,), metrics, target, boxes, options.cases)


def _box_file(options: SimpleNamespace) -> BoxFile | None:
    from .coco_file import BoxFile

    needy = [name for name in options.metrics if name in METRICS_OF_BOXES]
    if options.boxes is None:
        if needy:
            raise ValueError(f"--metrics: {needy[0]} needs to know where the objects are; give --boxes FILE")
        return None
    try:
        return BoxFile(options.boxes)
    except (OSError, ValueError) as error:
        reason = f"{options.boxes}: {error.strerror}" if isinstance(error, OSError) else error
        raise ValueError(f"--boxes: {reason}") from None


def _check_boxes(boxes: BoxFile | None, photos: Sequence[PhotoFile]) -> None:
    if boxes is None:
        return
    missing = [photo.path for photo in photos if photo.path not in boxes]
    if len(missing) == len(photos):
        raise ValueError(f"--boxes: {boxes.path} lists none of these photos, such as {missing[0]}")
    if missing:
        complain(f"note: {boxes.path} has no boxes for {photo_count(len(missing))}, such as {missing[0]}")


def _check_packages() -> None:
    """Refuse at once what would fail when the report is written."""
    missing = [package for package in ("scipy", "matplotlib", "jinja2") if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"evaluate needs {missing[0]}, which is not installed; run pip install 'gradcam-fast[cli,metrics]'"
        )


def _summary(comparison: Comparison, plan: Plan) -> str:
    """The means as aligned text, with a star at the best of each column."""
    from ..metrics import METRICS as KNOWN

    best = {metric: comparison.best(metric) for metric in plan.metrics}
    lines = [["", *(f"{metric} {'up' if KNOWN[metric].higher_is_better else 'down'}" for metric in plan.metrics)]]
    for row in plan.rows:
        means = [comparison.interval(row, metric).mean for metric in plan.metrics]
        cells = [
            "-" if math.isnan(mean) else f"{mean:.3f}{'*' if row in best[metric] else ''}"
            for mean, metric in zip(means, plan.metrics, strict=True)
        ]
        lines.append([row, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
