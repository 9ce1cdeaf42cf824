"""What each subcommand does with its options, once they are read.

Knows nothing of how photos are read, explained or drawn, nor of exit codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import choices
from .messages import complain, progress_of, report_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["COMMANDS"]


# What the commands stand on is imported by the commands, so that help can be had, and a missing package is told in a
# line, where only torch is installed. What can be refused is refused before the network is built.
def _demo(options: argparse.Namespace) -> int:
    from . import demo

    choices.check_folder(options.out)
    return demo.run(options.out)


def _explain(options: argparse.Namespace) -> int:
    from .photo_files import find_photos
    from .photo_pipeline import explain_photos
    from .report import FEW

    device, dtype = choices.device_of(options), getattr(torch, options.dtype)
    choices.check_folder(options.out)
    empty: list[str] = []
    photos = find_photos(options.photos, options.out, empty.append)
    formats = options.formats or (["panels"] if len(photos) <= FEW else ["overlay"])
    plan = choices.plan_of(options, formats, batch_size=options.batch_size, device=device, dtype=dtype)
    for message in empty:
        complain(f"{message}; skipped")
    if not photos:
        return len(empty)
    network = choices.network_of(options)
    question = choices.question_of(options, network, 2 if "panels" in formats else 1)
    with report_of(options) as report:
        return len(empty) + explain_photos(network, photos, options.out, question, plan, report)


def _render(options: argparse.Namespace) -> int:
    from .rendering import render_table

    choices.check_folder(options.out)
    plan = choices.plan_of(options, options.formats or ["overlay"])
    with report_of(options) as report:
        return render_table(options.table, options.photos, options.out, plan, report)


def _video(options: argparse.Namespace) -> int:
    from .video import explain_video

    choices.check_colormap(options)
    device, dtype = choices.device_of(options), getattr(torch, options.dtype)
    choices.check_folder(options.out.parent)
    network = choices.network_of(options)
    with progress_of(options, "frames") as progress:
        explain_video(
            network,
            options.source,
            options.out,
            choices.question_of(options, network, 1),
            device=device,
            dtype=dtype,
            batch_size=options.batch_size,
            colormap=options.colormap,
            alpha=options.alpha,
            tell=(lambda _: None) if options.quiet else print,
            progress=progress,
        )
    return 0


def _layers(options: argparse.Namespace) -> int:
    from ..explainer import Explainer
    from ..layers import list_layers

    network = choices.network_of(options)
    image = torch.rand(1, 3, *network.preprocess.size)
    chosen = Explainer(network.model, size=1)(image).layer
    lines = [("", "layer", "output", "map", "kind")]
    for each in list_layers(network.model, image):
        lines.append(("*" if each.name == chosen else "", each.name, _by(each.shape[1:]), _by(each.grid), each.kind))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"{network.title}, input {_by(network.preprocess.size)}\n")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "explain": _explain,
    "render": _render,
    "video": _video,
    "layers": _layers,
}


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
