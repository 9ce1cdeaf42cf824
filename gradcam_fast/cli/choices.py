"""From options to what the commands stand on, each checked as early as it can be.

Knows nothing of what the commands do with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..visual.colormaps import colormap_table
from .messages import complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .networks import Network
    from .photo_pipeline import RunSettings
    from .results import ExplainOptions

__all__ = ["check_colormap", "check_folder", "device_of", "network_of", "plan_of", "question_of"]


def network_of(options: argparse.Namespace) -> Network:
    """The network that the options name; what had to be assumed about it is told."""
    from .networks import load_network

    given = {name: getattr(options, name) for name in ("weights", "classes", "size", "mean", "std")}
    given = {name: value for name, value in given.items() if value is not None}
    network = load_network(options.model, crop=options.crop, **given)
    for note in network.notes:
        complain(f"note: {note}")
    return network


def question_of(options: argparse.Namespace, network: Network, topk: int) -> ExplainOptions:
    """What is asked; of the ``topk`` most probable classes, if the options say nothing of classes.

    Raises:
        ValueError: a class that the network has not, or a word that several have.
    """
    from .networks.class_names import find_class
    from .results import ExplainOptions

    count = len(network.class_names)
    if options.topk and options.topk > count:
        raise ValueError(f"argument --topk: {options.topk} exceeds the {count} classes of this network")
    target = None
    if options.target is not None:
        try:
            target = find_class(options.target, network.class_names)
        except ValueError as error:
            raise ValueError(f"argument --target: {error}") from None
    return ExplainOptions(
        target=target,
        topk=None if target is not None else options.topk or min(topk, count),
        layer=options.layer,
        method=options.method,
    )


def plan_of(options: argparse.Namespace, formats: Sequence[str], **how: Any) -> RunSettings:
    """What is to be made of the photos.

    Raises:
        ValueError: an unknown colormap. ImportError: a package for one of the formats is missing.
    """
    from .output_files import PictureStyle
    from .photo_pipeline import RunSettings

    check_colormap(options)
    if "parquet" in formats:
        from . import map_table  # noqa: F401
    if options.workers:
        how["workers"] = options.workers
    style = PictureStyle(
        colormap=options.colormap,
        alpha=options.alpha,
        suffix=".png" if options.png else ".jpg",
        quality=options.quality,
        longest=options.max_side,
    )
    return RunSettings(formats=tuple(dict.fromkeys(formats)), style=style, resume=options.resume, **how)


def check_colormap(options: argparse.Namespace) -> None:
    """Refuse a colormap that nobody has."""
    colormap_table(options.colormap, torch.device("cpu"))


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that the options name, else the first of CUDA, else the CPU.

    Raises:
        ValueError: it cannot be used here.
    """
    name = options.device
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except Exception as error:  # every backend has its own way to say that it is not there
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"argument --device: {name!r} cannot be used here ({reason}); give cpu, or leave it out"
        ) from None
    return device


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be there, before hours are spent on what should go into it.

    Raises:
        NotADirectoryError, PermissionError: what is in the way.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"argument --out: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"argument --out: {there} may not be written to")
