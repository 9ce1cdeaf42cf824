"""Groups of options that several commands share, with their help. Knows nothing of the commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..ops.arguments import METHODS
from . import values

FORMATS = ("overlay", "panels", "npy", "parquet")
DTYPES = ("float32", "bfloat16", "float16")


def network(command: argparse.ArgumentParser) -> None:
    """Which network, and how photos are shown to it."""
    group = command.add_argument_group("network")
    add = group.add_argument
    add(
        "--model",
        metavar="NAME",
        default="efficientnet_lite0",
        help="%(default)s, which is built in (default); a network of torchvision (resnet18) or timm; or "
        "package.module:factory, a function that returns one",
    )
    add("--weights", metavar="FILE", help="its weights, .safetensors or a saved state_dict; 'random' for none")
    add("--classes", metavar="FILE", type=Path, help="names of its classes, one a line or JSON")
    add("--size", metavar="H[xW]", type=values.size, help="height and width of its input (default: as its weights say)")
    add(
        "--mean",
        metavar=("R", "G", "B"),
        nargs=3,
        type=values.number,
        help="what its input is normalised with, from 0 to 1",
    )
    add("--std", metavar=("R", "G", "B"), nargs=3, type=values.number, help="likewise")
    add(
        "--crop",
        metavar="SHARE",
        type=values.crop,
        default="auto",
        help="share of a photo's shorter side that it sees, in the middle; 'none': the whole photo, squeezed; "
        "'auto': as its weights say (default)",
    )


def question(command: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Which classes (``several`` allows more than one at a time), where and how."""
    group = command.add_argument_group("question")
    which = group.add_mutually_exclusive_group()
    if several:
        which.add_argument(
            "--topk",
            metavar="K",
            type=values.positive,
            help="explain the K most probable classes (default: 1; 2 with panels)",
        )
    else:
        command.set_defaults(topk=None)
    which.add_argument(
        "--target", metavar="CLASS", help="explain this class: its number, counted from 0, or a word of its name"
    )
    group.add_argument(
        "--method", metavar="M", choices=METHODS, default="gradcam", help=f"{', '.join(METHODS)} (default: gradcam)"
    )
    group.add_argument(
        "--layer",
        metavar="NAME",
        help="the target layer's dotted name, see gradcam-fast layers (default: found by itself)",
    )


def formats(group: Any, text: str, choices: tuple[str, ...]) -> None:
    """What is made; None if nothing is said."""
    group.add_argument("--format", metavar="F", dest="formats", action="extend", type=values.chosen(choices), help=text)


def style(group: Any) -> None:
    """How pictures look, and which are made."""
    colors(group)
    group.add_argument("--quality", metavar="Q", type=values.percent, default=90, help="of JPEG overlays (default: 90)")
    group.add_argument("--png", action="store_true", help="write PNG, compressed little, instead of JPEG")
    group.add_argument(
        "--max-side",
        metavar="PIXELS",
        type=values.positive,
        default=1600,
        help="make pictures of larger photos no larger than this (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="pass over photos of which every file is there, made with the same options",
    )


def colors(group: Any) -> None:
    """How maps look."""
    group.add_argument(
        "--colormap", metavar="NAME", default="jet", help="a colormap of OpenCV or matplotlib (default: jet)"
    )
    group.add_argument(
        "--alpha",
        metavar="A",
        type=values.share,
        default=0.5,
        help="weight of the colours over the photo (default: 0.5)",
    )


def folder(group: Any, name: str) -> None:
    """Where files go."""
    group.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path(f"gradcam-fast-{name}"),
        help="folder for the pictures, made if missing (default: %(default)s)",
    )


def device(command: argparse.ArgumentParser, *, batch_size: int) -> Any:
    """Where the network runs; the group, for more options of speed."""
    group = command.add_argument_group("speed")
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    group.add_argument(
        "--dtype", metavar="T", choices=DTYPES, default="float32", help=f"{', '.join(DTYPES)} (default: float32)"
    )
    group.add_argument(
        "--batch-size",
        metavar="B",
        type=values.positive,
        default=batch_size,
        help="how many the network sees at once (default: %(default)s)",
    )
    return group


def workers(group: Any) -> None:
    """Threads."""
    group.add_argument(
        "--workers",
        metavar="N",
        type=values.positive,
        help="threads that read, and as many that write (default: one a core)",
    )


def messages(command: argparse.ArgumentParser, *, each: str = "") -> None:
    """How much is told, of ``each`` thing too where that can be."""
    group = command.add_argument_group("messages")
    group.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a progress bar, or none (default: on a terminal)"
    )
    how = group.add_mutually_exclusive_group()
    if each:
        how.add_argument("--verbose", action="store_true", help=f"tell of each {each}, however many there are")
    how.add_argument("--quiet", action="store_true", help="tell of nothing but what went wrong")
