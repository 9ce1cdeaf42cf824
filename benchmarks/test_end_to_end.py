"""The cost of an explanation beside the prediction, and beside other libraries.

    make bench BENCH=benchmarks/test_end_to_end.py

Seven networks with random weights, 224x224, all contenders in interleaved rounds. No test fails because of a time. On a
GPU the same contenders are measured by gpu.py.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contenders import CONTENDERS, NETWORKS, build, make_contenders, max_difference, predict

import gradcam_fast

SIDE = 224
BATCHES = (1, 8)
# Same maps may differ by rounding, and by the epsilon that some contenders add before they divide.
MAX_DIFFERENCE = 1e-4


def photos(batch):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(batch))


EVERY_NETWORK_AND_BATCH = pytest.mark.parametrize(
    ("name", "batch"), [(name, batch) for name in NETWORKS for batch in BATCHES]
)


@EVERY_NETWORK_AND_BATCH
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


@EVERY_NETWORK_AND_BATCH
def test_an_explanation_beside_other_libraries(compare, name, batch):
    model, images, (title, layer) = build(name), photos(batch), NETWORKS[name]
    prediction, contenders = predict(model), make_contenders(model, layer)
    expected = gradcam_fast.explain(model, images).heatmap
    differences = {other: max_difference(explain(images), expected) for other, explain in contenders.items()}
    compare(
        "an explanation beside other libraries",
        f"{title}, B = {batch}",
        {
            **{other: functools.partial(explain, images) for other, explain in contenders.items()},
            "inference": lambda: prediction(images),
        },
        [f"{other}/explainer" for other in contenders if other != "explainer"],
        seconds=25,
        facts={
            "largest difference of the maps": differences,
            "another map": [other for other, difference in differences.items() if difference > MAX_DIFFERENCE],
        },
    )


def peak_bytes(name, batch, contender):
    """Peak memory of a separate process beyond model and images; None if the contender cannot explain the network."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("peak_memory.py"), name, str(batch), contender],
        # So that malloc returns freed tensors to the system at once; otherwise the peak depends on heap fragmentation.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only: reads /proc")
@pytest.mark.parametrize(("name", "batch"), [("resnet50", 1), ("resnet50", 8), ("vgg16", 8)])
def test_peak_memory(benchmark, name, batch):
    title, layer = NETWORKS[name]
    features = gradcam_fast.features.feature_maps(build(name), photos(batch), layer=layer)
    map_bytes = features.activations.nbytes + features.gradients.nbytes + batch * SIDE * SIDE * 4
    contenders = ("inference", "explainer, layer named", *CONTENDERS)
    peaks = benchmark.pedantic(lambda: {contender: peak_bytes(name, batch, contender) for contender in contenders})
    benchmark.extra_info.update(
        {
            "table": "peak memory",
            "row": f"{title}, B = {batch}",
            "peak bytes": {contender: peak for contender, peak in peaks.items() if peak is not None},
            "bytes of activations, gradients and maps": map_bytes,
        }
    )
