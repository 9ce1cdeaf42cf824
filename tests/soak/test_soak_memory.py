"""Explanations by the thousand leave no memory behind."""

import gc
import resource
import sys
from pathlib import Path

import pytest
import torch
from support.networks import ConvNet
from support.soak import numbers
from support.unchanged import unchanged

import gradcam_fast

RSS_UNIT = 2**20 if sys.platform == "darwin" else 2**10

pytestmark = pytest.mark.slow


def resident():
    """MB of this process that are in memory now; on systems without /proc, at most so far."""
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNIT


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", ["features.3", None])
def test_explanations_do_not_grow(layer, training):
    model = ConvNet().train(training)
    images = torch.rand(2, 3, 32, 32)
    explainer = gradcam_fast.Explainer(model, layer=layer)

    def explain(number):
        shape = (1 + number % 3, 3, 16 + number % 32, 32)
        explainer(images if training else torch.rand(shape), topk=1 + number % 3)

    with unchanged(model):
        for number in range(2 * 96):  # all shapes: libraries below PyTorch keep something for each
            explain(number)
        gc.collect()
        before = resident()
        for number in numbers(short=100, full=10_000):
            explain(number)
        gc.collect()
        grown = resident() - before
    assert grown < 5, f"{grown:.1f} MB"
