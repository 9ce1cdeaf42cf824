"""The demonstration: a trained network explains photos that other packages contain; offline, in one command.

The photos are read where their packages are installed, and never copied.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import gradcam_fast

from ..pipeline.networks import load_network
from ..pipeline.photo_files import PhotoFile
from ..pipeline.photo_reading import read_photo
from ..pipeline.question import Question
from .console import Report
from .photo_pipeline import RunSettings, explain_photos

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fastest_runs", "run", "sample_photos"]

# (package, what to install, its photo files): a cat; a cup of coffee; a bull mastiff; a drum and its drumsticks.
SAMPLES = (
    ("skimage", "scikit-image", ("data/chelsea.png", "data/coffee.png")),
    ("foolbox", "--no-deps foolbox", ("data/imagenet_00_243.jpg", "data/imagenet_10_541.jpg")),
)
REPETITIONS = 7


def run(out: Path) -> int:
    """Explain the sample photos, write pictures to ``out``, and print which backend ran and how long it took.

    Returns:
        How many of the photos could not be read.

    Raises:
        ImportError: the built-in network is missing, or all packages with photos are.
    """
    network = load_network("efficientnet_lite0")
    paths, notes = sample_photos()
    if not paths:
        raise ImportError("none of the sample photos is installed; run pip install 'gradcam-fast[demo]'")
    print(f"{network.title}: the five most probable classes of each photo\n")
    photos = [PhotoFile(path) for path in paths]
    with Report() as report:
        unreadable = explain_photos(network, photos, out, Question(topk=2), RunSettings(), report)
    for note in notes:
        print(note)
    print("Each picture shows photo, heatmap and overlay, in one row for each of the two most probable classes.")
    print(f"All pictures are in {out.resolve()}")
    print(f"\n{gradcam_fast.backend()}\n")

    images = network.preprocess([read_photo(path) for path in paths]).images
    prediction, explanation = fastest_runs(
        lambda: _predict(network.model, images),
        lambda: gradcam_fast.explain(network.model, images, topk=2),
        repetitions=REPETITIONS,
    )
    threads = torch.get_num_threads()
    print(
        f"{len(paths)} photos in one batch on the CPU, {threads} {'thread' if threads == 1 else 'threads'}, fastest of "
        f"{REPETITIONS} alternating runs:\n"
        f"  prediction alone                              {1000 * prediction:6.1f} ms\n"
        f"  prediction and two heatmaps for each photo    {1000 * explanation:6.1f} ms"
    )
    return unreadable


def sample_photos() -> tuple[list[Path], list[str]]:
    """The sample photos that are installed, and a line for each package that is not; no package is imported."""
    paths, notes = [], []
    for package, install, files in SAMPLES:
        spec = find_spec(package)
        folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
        photos = [folder / file for folder in folders for file in files if (folder / file).is_file()]
        paths += photos
        if not photos:
            notes.append(f"The photos of {package}, which is not installed, are left out; run pip install {install}")
    return paths, notes


def fastest_runs(*functions: Callable[[], object], repetitions: int) -> list[float]:
    """The seconds of the fastest run of each function; they take turns, and the first round is not counted.

    They take turns so that other load on the machine affects all of them alike. The fastest run counts, because load
    can only add time.
    """
    fastest = [float("inf")] * len(functions)
    for repetition in range(repetitions + 1):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            seconds = time.perf_counter() - start
            if repetition > 0:
                fastest[i] = min(fastest[i], seconds)
    return fastest


@torch.no_grad()
def _predict(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(images)
    return logits
