"""The options of the subcommands in groups, the types of their values, and the objects built from them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
import torch

from ..methods import METHODS
from ..photos import MAX_PIXELS
from ..pipeline.network_source import DTYPE_NAMES, NetworkSource
from ..pipeline.question import QuestionError
from ..visual.colormaps import colormap_table
from .console import Report, complain

if TYPE_CHECKING:
    from ..pipeline.networks import Network
    from ..pipeline.question import Question
    from .photo_pipeline import RunSettings

# Options of which at most one may be overrides.
EXCLUSIVE = (("topk", "target"), ("verbose", "quiet"))


class Option(click.Option):
    """An option that the help lists under the title ``group``."""

    group = "Options"


class Command(click.Command):
    """A subcommand: options in groups, an epilog that is printed as it is, and a callback that takes all options."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call the callback with a namespace of the options."""
        options = SimpleNamespace(**ctx.params)
        for names in EXCLUSIVE:
            if all(getattr(options, name, None) for name in names):
                raise click.UsageError(f"give only one of {' and '.join(f'--{name}' for name in names)}", ctx)
        assert self.callback is not None
        return self.callback(options)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each group under its title."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record and isinstance(option, click.Option):
                groups.setdefault(getattr(option, "group", Option.group), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=22)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog without wrapping its lines again."""
        formatter.write(f"\n{self.epilog}")


class Group(click.Group):
    """The command with its subcommands."""

    command_class = Command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog without wrapping its lines again."""
        formatter.write(f"\n{self.epilog}")


def number(kind: type, low: float, high: float, expected: str) -> Callable[[str], Any]:
    """A converter of text to a number from ``low`` to ``high``, which ``expected`` describes in the error."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise click.BadParameter(f"{text!r} is not {expected}")
        return value

    return convert


positive = number(int, 1, sys.maxsize, "a whole number from 1")
percent = number(int, 1, 100, "a whole number from 1 to 100")
share = number(float, 0, 1, "a number from 0 to 1")
finite = number(float, -sys.float_info.max, sys.float_info.max, "a number")


def crop_share(text: str) -> float | str | None:
    """A number from 0 to 1, None for ``none``, or ``auto``."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    value: float = number(float, 0, 1, "a number from 0 to 1, 'auto' or 'none'")(text)
    return value


def image_size(text: str) -> tuple[int, int]:
    """(height, width), from ``224`` or ``224x320``."""
    if not (match := re.fullmatch(r"(\d+)(?:x(\d+))?", text)):
        raise click.BadParameter(f"{text!r} is not a size; give the side in pixels, or height and width as 224x320")
    return int(match[1]), int(match[2] or match[1])


def split_formats(texts: Sequence[str], known: Sequence[str]) -> list[str] | None:
    """The formats in texts such as ``overlay,npy``; None if no text was overrides."""
    names = [name.strip() for text in texts for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is unknown; choose from {', '.join(known)}")
    return names or None


def grouped(title: str, *options: Option) -> list[Option]:
    """Options under one title of the help."""
    for option in options:
        option.group = title
    return list(options)


NETWORK = grouped(
    "Network",
    Option(
        ["--model"],
        metavar="NAME",
        default="efficientnet_lite0",
        help="The built-in efficientnet_lite0; a network of torchvision (such as resnet18) or timm; "
        "package.module:factory, a function of yours that returns a model; or a file that 'export' wrote.",
    ),
    Option(
        ["--weights"],
        metavar="FILE",
        help="Weights: a .safetensors file or a saved state_dict, or 'random' for an untrained network.",
    ),
    Option(["--download"], is_flag=True, help="Download trained weights if this machine has none."),
    Option(["--classes"], metavar="FILE", type=Path, help="Names of the classes: one per line, or JSON."),
    Option(["--size"], metavar="H[xW]", type=image_size, help="Input height and width.  [default: as trained]"),
    Option(
        ["--mean"], metavar="R G B", nargs=3, type=finite, help="Mean of each input channel.  [default: as trained]"
    ),
    Option(["--std"], metavar="R G B", nargs=3, type=finite, help="Standard deviation of each, likewise."),
    Option(
        ["--crop"],
        metavar="SHARE",
        type=crop_share,
        default="auto",
        help="Share of a photo's shorter side that the network sees, in the middle; 'none' squeezes the whole photo; "
        "'auto' does as in training.",
    ),
)
NETWORK += grouped(
    "Network",
    Option(
        ["--probabilities"],
        metavar="KIND",
        type=click.Choice(("auto", "softmax", "sigmoid", "given", "none")),
        default="auto",
        help="What the outputs become: one class in N (softmax), independent labels (sigmoid), or nothing (given: they "
        "are probabilities; none: scores are shown). 'auto' decides only where it is sure.",
    ),
)
TOPK = Option(
    ["--topk"], metavar="K", type=positive, help="Explain the K most probable classes.  [default: 1; with panels 2]"
)
EXPLANATION = grouped(
    "Explanation",
    Option(["--target"], metavar="CLASS", help="Explain this class: its number, from 0, or a part of its name."),
    Option(
        ["--method"],
        metavar="NAME",
        type=click.Choice(METHODS),
        default="gradcam",
        help=f"One of {', '.join(METHODS)}; ablation, reciprocam and scorecam may take minutes a photo.",
    ),
    Option(
        ["--layer"],
        metavar="NAME",
        help="Layer to explain; 'gradcam-fast layers' lists the names.  [default: found automatically]",
    ),
)
OVERLAY = grouped(
    "Output",
    Option(["--colormap"], metavar="NAME", default="jet", help="A colormap of OpenCV or matplotlib."),
    Option(["--alpha"], metavar="A", type=share, default=0.5, help="Opacity of the heatmap, from 0 to 1."),
)
PICTURES = grouped(
    "Output",
    *OVERLAY,
    Option(["--quality"], metavar="Q", type=percent, default=90, help="JPEG quality of overlays, from 1 to 100."),
    Option(["--png"], is_flag=True, help="Write pictures as PNG instead of JPEG."),
    Option(
        ["--max-side"],
        metavar="PIXELS",
        type=positive,
        default=1600,
        help="Longest side of a picture; larger photos are drawn smaller.",
    ),
    Option(["--resume"], is_flag=True, help="Skip photos whose files all exist and were made with the same options."),
)
DEVICE = grouped(
    "Speed",
    Option(["--device"], metavar="NAME", help="cpu, cuda, cuda:1, ...  [default: cuda if there is one]"),
    Option(
        ["--dtype"],
        metavar="NAME",
        type=click.Choice(DTYPE_NAMES),
        default="float32",
        help=f"One of {', '.join(DTYPE_NAMES)}.",
    ),
)
WORKERS = grouped(
    "Speed",
    Option(
        ["--workers"],
        metavar="N",
        type=positive,
        help="Number of threads that read photos, and of threads that write files.  [default: one per core]",
    ),
    Option(
        ["--max-pixels"],
        metavar="N",
        type=positive,
        default=MAX_PIXELS,
        help="Refuse photos with more pixels; each thread that reads needs up to 20 bytes of memory a pixel.",
    ),
)
ENGINE = grouped(
    "Speed",
    Option(
        ["--engine"],
        metavar="NAME",
        type=click.Choice(("local", "ray")),
        default="local",
        help="What runs the work: local or ray; see below.",
    ),
    Option(
        ["--actors"],
        metavar="N",
        type=positive,
        help="With --engine ray, the number of processes, of --workers cores each.  [default: all cores but one]",
    ),
)
PROGRESS, QUIET = grouped(
    "Messages",
    Option(["--progress/--no-progress"], default=None, help="Show a progress bar, or none.  [default: on a terminal]"),
    Option(["--quiet"], is_flag=True, help="Print only errors."),
)
MESSAGES = grouped(
    "Messages",
    PROGRESS,
    Option(["--verbose"], is_flag=True, help="Print the result of each photo, however many there are."),
    QUIET,
)
ALL_LAYERS = Option(["--all"], is_flag=True, help="List every layer, also those inside blocks.")
DEBUG = Option(["--debug"], is_flag=True, help="Show the traceback of an error.")


def out_option(default: str) -> list[Option]:
    """The option for the output folder."""
    return grouped(
        "Output",
        Option(["--out"], metavar="DIR", type=Path, default=default, help="Output folder; created if missing."),
    )


def format_option(known: Sequence[str], help: str) -> list[Option]:
    """The option for the output formats, which must be in ``known``."""
    return grouped(
        "Output",
        Option(
            ["--format", "formats"],
            metavar="NAME[,NAME...]",
            multiple=True,
            callback=lambda context, option, texts: split_formats(texts, known),
            help=help,
        ),
    )


def batch_size_option(default: int | None, shown: str = "") -> list[Option]:
    """The option for the number of images that the network takes at once.

    Args:
        shown: what help says of the default, if that is None.
    """
    text = f"Images that the network takes at once.{f'  [default: {shown}]' if shown else ''}"
    return grouped("Speed", Option(["--batch-size"], metavar="B", type=positive, default=default, help=text))


def batch_range(text: str) -> int | tuple[int, int]:
    """The smallest and largest number of images, from ``1:64``, or the only one, from ``8``."""
    if not (match := re.fullmatch(r"(\d+)(?::(\d+))?", text)):
        raise click.BadParameter(f"{text!r} is no number of images; give the smallest and the largest as 1:64, or one")
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high:
        raise click.BadParameter(f"{text!r} is no range from at least 1 upwards")
    return low if match[2] is None else (low, high)


def refuse_package(options: SimpleNamespace, reason: str) -> None:
    """Refuse a package where a network is needed.

    Raises:
        ValueError: ``--model`` names a package.
    """
    if source_of(options).is_package:
        raise ValueError(f"--model: {options.model} is a package, {reason}")


def check_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be created or written to, before any work.

    Raises:
        NotADirectoryError, PermissionError: the message names the part of the path that is the problem.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"--out: {existing} is not a folder; give another folder")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"--out: no permission to write to {existing}; give another folder")


def check_colormap(options: SimpleNamespace) -> None:
    """Refuse an unknown colormap; the error names similar ones."""
    colormap_table(options.colormap, torch.device("cpu"))


def source_of(options: SimpleNamespace) -> NetworkSource:
    """Where the network comes from that the options name."""
    names = ("model", "weights", "classes", "size", "mean", "std", "crop", "download", "device", "dtype")
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    rule = None if options.probabilities == "none" else options.probabilities
    return NetworkSource(**given, probabilities=rule)


def placement_of(options: SimpleNamespace) -> tuple[torch.device, torch.dtype]:
    """Where and in what type the network runs, as the options or its package say.

    Raises:
        ValueError: the device does not work on this machine, or is none of the package's kind.
    """
    return source_of(options).placement()


def network_of(options: SimpleNamespace) -> Network:
    """The network that the options name; assumptions about the network are printed as notes."""
    network = source_of(options).load()
    for note in network.notes:
        complain(f"note: {note}")
    return network


def question_of(options: SimpleNamespace, network: Network, topk: int) -> Question:
    """The classes, layer and method to explain; by default the ``topk`` most probable classes.

    Raises:
        ValueError: a class that the network does not have, or a name that several classes match.
    """
    try:
        return network.ask(
            target=options.target,
            topk=getattr(options, "topk", None),
            layer=options.layer,
            method=options.method,
            default_topk=topk,
        )
    except QuestionError as error:
        raise ValueError(f"--{error}") from None


def run_settings_of(options: SimpleNamespace, formats: Sequence[str], **settings: Any) -> RunSettings:
    """The settings of a run over photos: what to write for each photo, and how.

    Raises:
        ValueError: an unknown colormap.
        ImportError: a package that one of the formats needs is missing.
    """
    from .output_files import PictureStyle
    from .photo_pipeline import RunSettings

    check_colormap(options)
    if "parquet" in formats:
        from ..pipeline import map_table  # noqa: F401
    if options.workers:
        settings["workers"] = options.workers
    style = PictureStyle(
        colormap=options.colormap,
        alpha=options.alpha,
        suffix=".png" if options.png else ".jpg",
        quality=options.quality,
        longest=options.max_side,
    )
    settings |= {"resume": options.resume, "max_pixels": options.max_pixels}
    return RunSettings(formats=tuple(dict.fromkeys(formats)), style=style, **settings)


def report_of(options: SimpleNamespace) -> Report:
    """The report of a run over photos, which prints as much as the options say."""
    verbose = False if options.quiet else options.verbose or None
    return Report(verbose=verbose, bar=options.progress, summary=False if options.quiet else None)
