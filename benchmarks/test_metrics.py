"""The cost of metrics in the predictions and explanations that they cannot do without, beside pytorch-grad-cam.

    make bench BENCH=benchmarks/test_metrics.py

ResNet-18 with random weights at 224x224. Goals: insertion and deletion with 28 steps at most 1.1 times their 56
predictions, batched; ROAD of an image at five percentages at most 12 predictions and the imputation; the randomisation
of all layers at most 1.2 times an explanation for each layer.
"""

from __future__ import annotations

import pytest
import torch
from contenders import build, predict

import gradcam_fast
from gradcam_fast import metrics

STEPS = 28
AT_ONCE = 4  # the metrics' own batch_size on a CPU
PERCENTAGES = (10, 30, 50, 70, 90)


def photos(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def insertion_and_deletion(images: int):
    """The metrics, and the predictions of as many images in batches of the same size, by name."""
    model, batch = build("resnet18"), photos(images)
    explanation, prediction = gradcam_fast.explain(model, batch), predict(model)
    full, rest = divmod(2 * STEPS * images, AT_ONCE)
    batches = [photos(AT_ONCE)] * full + ([photos(rest)] if rest else [])

    def curves():
        metrics.insertion(model, batch, explanation, steps=STEPS)
        metrics.deletion(model, batch, explanation, steps=STEPS)

    def predictions():
        for changed in batches:
            prediction(changed)

    return {"curves": curves, "predictions": predictions}


def randomisation(images: int):
    """The metric, and an explanation for each layer, by name."""
    model, batch = build("resnet18"), photos(images)
    explainer = gradcam_fast.Explainer(model, layer="layer4")
    explanation = explainer(batch)
    layers = metrics.randomisation(explainer, batch, explanation=explanation).layers

    def explanations():
        for _ in layers:
            explainer(batch, explanation.target)

    return {
        "randomisation": lambda: metrics.randomisation(explainer, batch, explanation=explanation),
        "explanations": explanations,
    }


@pytest.mark.parametrize("images", [1, 4])
def test_insertion_and_deletion_in_predictions(compare, images):
    contenders = insertion_and_deletion(images)
    row = f"insertion and deletion, {STEPS} steps, B = {images}"
    compare("metrics beside what they need", row, contenders, ["curves/predictions"], rounds=8)


@pytest.mark.parametrize("images", [1, 8])
def test_randomisation_in_explanations(compare, images):
    contenders = randomisation(images)
    row = f"randomisation of all layers, B = {images}"
    compare("metrics beside what they need", row, contenders, ["randomisation/explanations"], rounds=5)


def test_road_in_predictions_and_imputations(compare):
    model, image = build("resnet18"), photos(1)
    explanation, prediction = gradcam_fast.explain(model, image), predict(model)
    hottest_first = explanation.heatmap.flatten().argsort(descending=True)
    removed = torch.zeros(2 * len(PERCENTAGES), 224 * 224, dtype=torch.bool)
    for place, percentage in enumerate(PERCENTAGES):
        count = round(percentage / 100 * removed.shape[1])
        removed[2 * place, hottest_first[:count]] = True
        removed[2 * place + 1, hottest_first[-count:]] = True
    removed = removed.reshape(-1, 224, 224)

    def needed():
        prediction(image.expand(12, -1, -1, -1).contiguous())
        metrics.impute(image.expand(len(removed), -1, -1, -1), removed)

    contenders = {
        "road": lambda: metrics.road(model, image, explanation, percentages=PERCENTAGES),
        "12 predictions and imputation": needed,
        "12 predictions": lambda: prediction(image.expand(12, -1, -1, -1).contiguous()),
    }
    peer = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = [lambda output: output.softmax(0)[int(explanation.target)]]
    maps = explanation.heatmap.numpy()
    contenders["pytorch-grad-cam"] = lambda: peer.ROADCombined(list(PERCENTAGES))(image, maps, targets, model)
    pairs = ["road/12 predictions and imputation", "road/12 predictions", "pytorch-grad-cam/road"]
    compare("metrics beside what they need", "ROAD at five percentages, B = 1", contenders, pairs, rounds=3)
