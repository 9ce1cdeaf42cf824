"""What an explanation costs beside the prediction, and beside what users explain with today.

    make bench BENCH=benchmarks/test_end_to_end.py

Seven networks with random weights, 224x224, all contenders by turns. Nothing here fails on a clock. On a GPU the same
contenders are measured by gpu.py.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contenders import CONTENDERS, NETWORKS, apart, build, contenders, predict

import gradcam_fast

SIDE = 224
BATCHES = (1, 8)
# Maps may differ by rounding, and some add an epsilon before they divide.
SAME_MAP = 1e-4


def photos(batch):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))


EVERYWHERE = pytest.mark.parametrize(("name", "batch"), [(name, batch) for name in NETWORKS for batch in BATCHES])


@EVERYWHERE
def test_an_explanation_beside_the_prediction(compare, name, batch):
    model, images = build(name), photos(batch)
    prediction, explainer = predict(model), gradcam_fast.Explainer(model)
    explanation = explainer(images)
    assert explanation.valid.all() and explanation.layer == NETWORKS[name][1]
    compare(
        "an explanation beside the prediction",
        f"{NETWORKS[name][0]}, B = {batch}",
        {
            "explainer": lambda: explainer(images),
            "inference": lambda: prediction(images),
            "ten": lambda: explainer(images, topk=10),
        },
        ("explainer/inference", "ten/explainer"),
        seconds=70 if batch > 1 else 30,
    )


@EVERYWHERE
def test_an_explanation_beside_other_libraries(compare, name, batch):
    model, images, (title, layer) = build(name), photos(batch), NETWORKS[name]
    prediction, rivals = predict(model), contenders(model, layer)
    expected = gradcam_fast.explain(model, images).heatmap
    differences = {rival: apart(explain(images), expected) for rival, explain in rivals.items()}
    compare(
        "an explanation beside other libraries",
        f"{title}, B = {batch}",
        {
            **{rival: functools.partial(explain, images) for rival, explain in rivals.items()},
            "inference": lambda: prediction(images),
        },
        [f"{rival}/explainer" for rival in rivals if rival != "explainer"],
        seconds=25,
        facts={
            "largest difference of the maps": differences,
            "another map": [rival for rival, difference in differences.items() if difference > SAME_MAP],
        },
    )


def resident(name, batch, contender):
    """What a process of its own needs beyond its model and images, in bytes; None of a contender that cannot."""
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("resident.py"), name, str(batch), contender],
        # What is freed is given back at once: without that a peak depends on where in the heap things came to lie.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of resident memory")
@pytest.mark.parametrize(("name", "batch"), [("resnet50", 1), ("resnet50", 8), ("vgg16", 8)])
def test_peak_memory(benchmark, name, batch):
    title, layer = NETWORKS[name]
    found = gradcam_fast.features.feature_maps(build(name), photos(batch), layer=layer)
    maps = found.activations.nbytes + found.gradients.nbytes + batch * SIDE * SIDE * 4
    contenders = ("inference", "explainer, layer named", *CONTENDERS)
    peaks = benchmark.pedantic(lambda: {each: resident(name, batch, each) for each in contenders})
    benchmark.extra_info.update(
        {
            "table": "peak memory",
            "row": f"{title}, B = {batch}",
            "peak bytes": {contender: peak for contender, peak in peaks.items() if peak is not None},
            "bytes of activations, gradients and maps": maps,
        }
    )
