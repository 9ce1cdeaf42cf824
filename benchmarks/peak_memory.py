"""The peak memory of a contender, beyond what the process holds with model, images and libraries before the calls.

    python benchmarks/peak_memory.py resnet50 8 explainer

prints bytes, or null if the contender is not installed or cannot explain the network. Linux only, where the kernel
records the peak resident memory of a process and resets it on request.
"""

import json
import sys
from pathlib import Path

import torch
from contenders import NETWORKS, build, make_contenders, predict

import gradcam_fast

CALLS = 3


def resident_bytes(entry):
    """Resident memory: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(entry))
    return int(kilobytes) * 1024


def peak_bytes(name, batch, contender):
    model, images = build(name), torch.randn(batch, 3, 224, 224)
    layer = NETWORKS[name][1]
    further = {
        "inference": predict(model),
        # Without the trial runs in which the first call finds the layer.
        "explainer, layer named": gradcam_fast.Explainer(model, layer=layer),
    }
    run = {**make_contenders(model, layer), **further}.get(contender)
    if run is None:
        return None
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(CALLS):
        run(images)
    return resident_bytes("VmHWM") - before


if __name__ == "__main__":
    name, batch, contender = sys.argv[1:]
    print(json.dumps(peak_bytes(name, int(batch), contender)))
