"""A network that tells red from blue and fails on purpose, for processes that a test cannot reach otherwise.

What it does is said by files in the folder that the environment variable `FOLDER` names. Weights are tried on black
images when a network is loaded; so black images do no harm.
"""

import os
import signal
import time
from pathlib import Path

import torch

from gradcam_fast.pipeline.network_source import NetworkSource
from support import red_or_blue

FOLDER = "GRADCAM_FAST_TEST_FOLDER"
SIDE = red_or_blue.SIDE
NUMBERS = {"size": (SIDE, SIDE), "mean": (0, 0, 0), "std": (1, 1, 1), "crop": None, "probabilities": "softmax"}
SOURCE = NetworkSource("support.fragile:model", **NUMBERS)
OPTIONS = ["--model", SOURCE.model, "--size", str(SIDE), "--mean", *"000", "--std", *"111", "--crop", "none"]
OPTIONS += ["--probabilities", "softmax"]


class Fragile(torch.nn.Module):
    """The network of `red_or_blue`; a green photo kills its process, and so does the file ``kill``, once."""

    def __init__(self):
        super().__init__()
        self.layers = red_or_blue.model()

    def forward(self, images):
        folder = os.environ.get(FOLDER)
        if folder and images.any():
            self._note(Path(folder), images)
        return self.layers(images)

    def _note(self, folder, images):
        with open(folder / "processes", "a") as file:
            file.write(f"{os.getpid()} {torch.get_num_threads()} {os.environ.get('MALLOC_ARENA_MAX', 0)}\n")
        if (folder / "slow").exists():
            time.sleep(0.02 * len(images))
        kill = folder / "kill"
        is_told = kill.exists()
        kill.unlink(missing_ok=True)
        # A green photo is black but for one bright cell of green.
        if is_told or (images[:, 1].amax((1, 2)) > images[:, 0].amax((1, 2)) + 0.9).any():
            os.kill(os.getpid(), signal.SIGKILL)


def model():
    return Fragile().eval()


def processes(folder):
    """(pid, number of threads, most arenas of memory) of each forward so far."""
    file = folder / "processes"
    return [tuple(map(int, line.split())) for line in file.read_text().splitlines()] if file.exists() else []
