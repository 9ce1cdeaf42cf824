"""The demonstration: real photos, explained by a real network, offline, in one command.

The photos are those that other packages bring along; they are read where those packages are installed, never copied.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import gradcam_fast

from .gathering import Photo
from .networks import load_network
from .photos import read_photo
from .pipeline import Plan, Question, explain_files
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run", "sample_photos", "time_in_turn"]

# (package, what to install, its photo files): a cat; a cup of coffee; a bull mastiff; a drum and its drumsticks.
SAMPLES = (
    ("skimage", "scikit-image", ("data/chelsea.png", "data/coffee.png")),
    ("foolbox", "--no-deps foolbox", ("data/imagenet_00_243.jpg", "data/imagenet_10_541.jpg")),
)
REPETITIONS = 7


def run(out: Path, *, tell: Callable[[str], None], complain: Callable[[str], None]) -> int:
    """Explain the sample photos, draw them in ``out``, and say what ran and how long it took.

    Returns:
        How many of the photos could not be read.

    Raises:
        ImportError: the built-in network, or every package with photos, is missing.
    """
    network = load_network("efficientnet_lite0")
    paths, notes = sample_photos()
    if not paths:
        raise ImportError("none of the sample photos is installed; run pip install 'gradcam-fast[demo]'")
    question = Question(topk=2)
    tell(f"{network.title}: the five most probable classes of each photo\n")
    unreadable = explain_files(network, [Photo(path) for path in paths], out, question, Plan(), Report(tell, complain))
    for note in notes:
        tell(note)
    tell(f"Each picture shows photo, heatmap and overlay for the two most probable classes; all are in {out.resolve()}")
    tell(f"\n{gradcam_fast.backend()}\n")

    images = network.preprocess([read_photo(path) for path in paths])
    bare, explained = time_in_turn(
        lambda: _predict(network.model, images),
        lambda: gradcam_fast.explain(network.model, images, topk=2),
        repetitions=REPETITIONS,
    )
    tell(
        f"{len(paths)} photos in one batch on the CPU, {torch.get_num_threads()} threads, least of {REPETITIONS} runs "
        f"each, taken in turn:\n"
        f"  prediction alone                              {1000 * bare:6.1f} ms\n"
        f"  prediction and two heatmaps for each photo    {1000 * explained:6.1f} ms"
    )
    return unreadable


def sample_photos() -> tuple[list[Path], list[str]]:
    """The sample photos that are installed, and a line for each package that is not; no package is imported."""
    paths, notes = [], []
    for package, install, files in SAMPLES:
        spec = find_spec(package)
        folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
        found = [folder / file for folder in folders for file in files if (folder / file).is_file()]
        paths += found
        if not found:
            notes.append(f"{package} is not installed, so its photos are left out; pip install {install} adds them")
    return paths, notes


def time_in_turn(*functions: Callable[[], object], repetitions: int) -> list[float]:
    """The least seconds each function took, one run of each in every round, after a first round that is not counted.

    In turn, so that whatever else the machine does meets all of them alike; the least, because noise only ever adds.
    """
    least = [float("inf")] * len(functions)
    for repetition in range(repetitions + 1):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
            if repetition > 0:
                least[i] = min(least[i], seconds)
    return least


@torch.no_grad()
def _predict(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(images)
    return logits
