"""How the cost of an explanation grows with batch size, image size, number of targets, and depth of the layer.

    make bench BENCH=benchmarks/test_growth.py

Each beside the prediction of the same images, in interleaved rounds. No test fails because of a time.
"""

import pytest
import torch
from contenders import build, predict

import gradcam_fast

SECONDS = 12
# From the last block of ResNet-50 to its first feature maps.
DEPTHS = ("layer4.2", "layer4.0", "layer3.5", "layer3.0", "layer2.0", "layer1.2", "layer1.0", "maxpool", "relu")


def measure(compare, table, row, name, batch=1, side=224, topk=None, **choices):
    model = build(name)
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    prediction, explainer = predict(model), gradcam_fast.Explainer(model, **choices)
    assert explainer(images, topk=topk).valid.all()
    compare(
        table,
        str(row),
        {"explainer": lambda: explainer(images, topk=topk), "inference": lambda: prediction(images)},
        ("explainer/inference",),
        seconds=SECONDS,
    )


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_with_the_batch(compare, batch):
    measure(compare, "batch size, ResNet-18 at 224x224", batch, "resnet18", batch)


@pytest.mark.parametrize("side", [224, 320, 448, 640, 768, 1024])
def test_with_the_image(compare, side):
    measure(compare, "side of the image, ResNet-18, B = 1", side, "resnet18", side=side)


@pytest.mark.parametrize("targets", [1, 2, 5, 10, 20, 50, 100])
def test_with_the_number_of_targets(compare, targets):
    measure(compare, "number of targets, ResNet-50, B = 1", targets, "resnet50", topk=targets)


@pytest.mark.parametrize("layer", DEPTHS)
def test_with_the_depth_of_the_layer(compare, layer):
    measure(compare, "layer, ResNet-50, B = 1", layer, "resnet50", layer=layer)
