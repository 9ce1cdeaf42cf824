"""The command ``gradcam-fast``: its options, its help, its messages and exit codes.

Knows nothing of how photos are read, explained or drawn.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import __version__
from .contract import METHODS
from .overlay import colormap_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

EXIT_STATUS = """\
exit status:
  0    all photos were explained
  1    some photos could not be read; each is named on standard error,
       the others, if any, were explained
  2    wrong options, or something is missing without which no photo can be
       explained; standard error says what
  130  interrupted
  141  the reader of the output went away
"""

TOP = f"""\
examples:
  gradcam-fast demo
  gradcam-fast explain holiday/*.jpg
  gradcam-fast explain cat.jpg --target 285 --method layercam --out cat

{EXIT_STATUS}"""

DEMO = """\
Explain photos that other packages bring along (a cat and a cup of coffee from
scikit-image; a dog and a drum from foolbox, where it is installed) with
EfficientNet-Lite0, trained on ImageNet. Works offline.

For each photo the five most probable classes are printed, and a picture is
written: photo, heatmap and overlay, a row for each of the two most probable
classes. At the end: which backend ran, and how long the explanations took
beside the bare prediction.
"""

EXPLAIN = """\
Show where a network looks in your photos.

For each photo the five most probable classes are printed, and a picture is
written: photo, heatmap and overlay, a row for each class explained. Red is
where the network found the most evidence for the class, dark blue where it
found the least. Every map is scaled to its own extremes: compare places within
one map, not colours between maps.
"""

EXPLAIN_NOTES = f"""\
photos:
  Every format that Pillow reads, in colour or grayscale. The EXIF orientation
  is respected, transparency is laid over white, and of an animation the first
  frame counts. The network sees the whole photo, squeezed to its input size.

pictures:
  DIR/<name of the photo>-gradcam.jpg, with a number where two photos have the
  same name. Pictures of an earlier run are replaced, other files never.

{EXIT_STATUS}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (None: the process's own) and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _complain(f"warning: {message}")
            unreadable: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough; what is still buffered must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if options.debug:
            raise
        _complain(" ".join(str(error).split()) or type(error).__name__)
        return 2
    return 1 if unreadable else 0


# What the commands stand on is imported by the commands, so that help can be had, and a missing package is told in a
# line, where only torch is installed.
def _demo(options: argparse.Namespace) -> int:
    from . import demo

    return demo.run(options.out, tell=print, complain=_complain)


def _explain(options: argparse.Namespace) -> int:
    from .models import load_network
    from .pipeline import Question, explain_files

    colormap_table(options.colormap, torch.device("cpu"))  # an unknown name is told before anything is loaded
    question = Question(
        target=options.target,
        topk=options.topk if options.target is None else None,
        layer=options.layer,
        method=options.method,
    )
    network = load_network(options.model)
    return explain_files(
        network, options.photos, options.out, question, colormap=options.colormap, tell=print, complain=_complain
    )


def _complain(message: str) -> None:
    print(f"gradcam-fast: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradcam-fast",
        description="Show where a network looks in a photo: Grad-CAM heatmaps over photos.",
        epilog=TOP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _command(commands, _demo, "demo", "explain a few photos that are already installed", DEMO, EXIT_STATUS)

    explain = _command(commands, _explain, "explain", "explain your own photos", EXPLAIN, EXPLAIN_NOTES)
    explain.add_argument("photos", metavar="PHOTO", nargs="+", type=Path, help="photo files")
    which = explain.add_mutually_exclusive_group()
    which.add_argument(
        "--topk", metavar="K", type=_positive, default=2, help="explain the K most probable classes (default: 2)"
    )
    which.add_argument("--target", metavar="N", type=int, help="explain class number N instead, counted from 0")
    explain.add_argument(
        "--method", metavar="M", choices=METHODS, default="gradcam", help=f"{', '.join(METHODS)} (default: gradcam)"
    )
    explain.add_argument("--layer", metavar="NAME", help="the target layer's dotted name (default: found by itself)")
    explain.add_argument(
        "--model", metavar="NAME", default="efficientnet_lite0", help="the network; so far %(default)s is the only one"
    )
    explain.add_argument(
        "--colormap", metavar="NAME", default="jet", help="a colormap of OpenCV or matplotlib (default: jet)"
    )
    for command, folder in ((commands.choices["demo"], "demo"), (explain, "pictures")):
        command.add_argument(
            "--out",
            metavar="DIR",
            type=Path,
            default=Path(f"gradcam-fast-{folder}"),
            help="folder for the pictures, made if missing (default: %(default)s)",
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int],
    name: str,
    short: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=short,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number
