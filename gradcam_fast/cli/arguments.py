"""The options of every command, with their help. Knows nothing of what the commands do."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import __version__
from . import manual, option_groups
from .option_groups import FORMATS

__all__ = ["parser"]

Run = Callable[[argparse.Namespace], int]


def parser(commands: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The parser; the options it returns have the command's function as ``run``."""
    top = argparse.ArgumentParser(
        prog="gradcam-fast", description=manual.TOP, epilog=manual.TOP_NOTES, formatter_class=_Manual
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    below = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (takes, short, description, notes, fill) in _COMMANDS.items():
        command = below.add_parser(
            name,
            usage=f"gradcam-fast {name} [options]{takes}",
            help=short,
            description=description,
            epilog=notes,
            formatter_class=_Manual,
            allow_abbrev=False,
        )
        fill(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=commands[name])
    return top


class _Manual(argparse.RawDescriptionHelpFormatter):
    """Prose as it stands, options in at most 80 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=22, width=min(80, shutil.get_terminal_size().columns) - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Names with hyphens are typed as they stand.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _demo(command: argparse.ArgumentParser) -> None:
    option_groups.folder(command, "demo")


def _explain(command: argparse.ArgumentParser) -> None:
    command.add_argument("photos", metavar="PATH", nargs="+", help="photos, folders of photos, or patterns")
    option_groups.network(command)
    option_groups.question(command)
    output = command.add_argument_group("output")
    option_groups.folder(output, "pictures")
    option_groups.formats(
        output, "overlay, panels, npy, parquet, or several with commas between (see formats below)", FORMATS
    )
    option_groups.style(output)
    option_groups.workers(option_groups.device(command, batch_size=32))
    option_groups.messages(command, each="photo")


def _render(command: argparse.ArgumentParser) -> None:
    command.add_argument("table", metavar="TABLE", type=Path, help="the folder maps.parquet, or one file of it")
    command.add_argument(
        "--photos",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="where relative paths in the table start from (default: the current folder)",
    )
    output = command.add_argument_group("output")
    option_groups.folder(output, "pictures")
    option_groups.formats(
        output, "overlay (default), panels, npy, or several with commas between, as in explain", FORMATS[:3]
    )
    option_groups.style(output)
    option_groups.workers(command.add_argument_group("speed"))
    option_groups.messages(command, each="photo")


def _layers(command: argparse.ArgumentParser) -> None:
    option_groups.network(command)


def _video(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="FILE", help="the video, or the address of a stream")
    command.add_argument(
        "-o", "--out", metavar="FILE", type=Path, required=True, help="the video to write: .mp4, .mov, .mkv or .webm"
    )
    option_groups.network(command)
    option_groups.question(command, several=False)
    option_groups.colors(command.add_argument_group("output"))
    option_groups.device(command, batch_size=8)
    option_groups.messages(command)


# What follows the options; one line, a description and notes; what fills in the options.
_COMMANDS: dict[str, tuple[str, str, str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("", "explain a few photos that are already installed", manual.DEMO, manual.EXIT_STATUS, _demo),
    "explain": (" PATH ...", "explain your own photos", manual.EXPLAIN, manual.EXPLAIN_NOTES, _explain),
    "render": (" TABLE", "make pictures from maps kept by explain", manual.RENDER, manual.RENDER_NOTES, _render),
    "video": (" FILE -o FILE", "explain every frame of a video", manual.VIDEO, manual.VIDEO_NOTES, _video),
    "layers": ("", "list the layers that can be explained", manual.LAYERS, manual.LAYERS_NOTES, _layers),
}
