"""How much memory a contender needs at its peak, beyond the model, the images and the libraries at rest.

    python benchmarks/resident.py resnet50 8 explainer

prints bytes, or null where the contender is not installed or does not explain the network. Linux only: the kernel keeps
the greatest resident set of a process, and forgets it on demand.
"""

import json
import sys
from pathlib import Path

import torch
from contenders import NETWORKS, build, contenders, predict

import gradcam_fast

RUNS = 3


def resident(entry):
    """Bytes: VmRSS now, VmHWM at its greatest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(entry))
    return int(kilobytes) * 1024


def peak(name, batch, contender):
    model, images = build(name), torch.randn(batch, 3, 224, 224)
    layer = NETWORKS[name][1]
    own = {
        "inference": predict(model),
        # Without the trial runs of a first call.
        "explainer, layer named": gradcam_fast.Explainer(model, layer=layer),
    }
    run = {**contenders(model, layer), **own}.get(contender)
    if run is None:
        return None
    at_rest = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(RUNS):
        run(images)
    return resident("VmHWM") - at_rest


if __name__ == "__main__":
    name, batch, contender = sys.argv[1:]
    print(json.dumps(peak(name, int(batch), contender)))
