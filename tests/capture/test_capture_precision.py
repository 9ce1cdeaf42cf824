"""Half precision and memory layout only round the heatmap; they never change the layer found.

Single targets of named layers in half precision are in test_capture_grad_modes.py.
"""

import copy

import pytest
import torch
from support.naive import full_graph, of_class
from support.networks import ConvNet
from support.tolerances import ROUNDED_INPUTS, SAME_INPUTS
from support.unchanged import unchanged
from torch import nn

from gradcam_fast import cam, explain

HALVES = [torch.float16, torch.bfloat16]
METHODS = ["gradcam", "gradcam++", "xgradcam", "hirescam", "elementwise", "layercam"]


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


class CastInside(ConvNet):
    """Takes and returns float32; the whole network, or only its head, runs under an autocast of its own."""

    def __init__(self, dtype, head_only):
        super().__init__()
        self.dtype, self.head_only = dtype, head_only

    def forward(self, images):
        with torch.autocast("cpu", self.dtype, enabled=not self.head_only):
            maps = self.features(images)
        with torch.autocast("cpu", self.dtype):
            logits = self.head(maps)
        return logits.float()


class HalfTrunk(ConvNet):
    """A trunk in half precision under a head in float32."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.features.to(dtype)

    def forward(self, images):
        return self.head(self.features(images.to(self.dtype)).float())


@pytest.mark.parametrize("layer", ["features.3", None])
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_only_rounds_the_map_of_the_float32_model(dtype, layer, images):
    model = ConvNet()
    plain = explain(model, images, topk=3, layer=layer, relu=False)
    with torch.autocast("cpu", dtype), unchanged(model):
        explanation = explain(model, images, target=plain.target, layer=layer, relu=False)
    assert explanation.layer == plain.layer
    assert explanation.logits.dtype == dtype and explanation.heatmap.dtype == torch.float32
    assert_near(explanation.heatmap, plain.heatmap, ROUNDED_INPUTS[dtype])
    assert not torch.equal(explanation.heatmap, plain.heatmap)


@pytest.mark.parametrize("layer", ["features.3", None])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_model_has_the_rounded_map_of_the_float32_model(dtype, layer, images):
    model = ConvNet()
    plain = explain(model, images, topk=3, layer=layer, relu=False)
    model = copy.deepcopy(model).to(dtype)
    with unchanged(model):
        explanation = explain(model, images.to(dtype), target=plain.target, layer=layer, relu=False)
    assert explanation.layer == plain.layer and explanation.logits.dtype == dtype
    assert_near(explanation.heatmap, plain.heatmap, ROUNDED_INPUTS[dtype])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_model_takes_float32_images_under_autocast(dtype, images):
    model = ConvNet().to(dtype)
    expected = explain(model, images.to(dtype), target=1)
    with torch.autocast("cpu", dtype), unchanged(model):
        explanation = explain(model, images, target=1)
    assert torch.equal(explanation.heatmap, expected.heatmap) and explanation.layer == expected.layer


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_several_targets_in_half_precision_equal_single_targets(dtype, autocast, images):
    model, targets = ConvNet(), torch.tensor([[0, 3], [2, 2], [4, 1]])
    if not autocast:
        model, images = model.to(dtype), images.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        together = explain(model, images, target=targets, layer="features.3").heatmap
        single = [explain(model, images, target=targets[:, k], layer="features.3").heatmap for k in range(2)]
    assert torch.equal(together, torch.stack(single, 1))


@pytest.mark.parametrize("layer", ["features.1", "features.3", "features"])
@pytest.mark.parametrize("kind", ["everything cast", "head cast", "half trunk"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_of_mixed_precision_is_explained_in_the_precision_of_the_layer(dtype, kind, layer, images):
    model = HalfTrunk(dtype).eval() if kind == "half trunk" else CastInside(dtype, kind == "head cast").eval()
    activations, gradients, logits = full_graph(model, layer, images, of_class(1))
    assert activations.dtype == gradients.dtype == (torch.float32 if kind == "head cast" else dtype)
    assert logits.dtype == torch.float32
    choices = {"size": activations.shape[-2:], "method": "hirescam", "normalize": "none", "relu": False}
    with unchanged(model):
        explanation = explain(model, images, target=1, layer=layer, **choices)
    assert torch.equal(explanation.logits, logits)
    assert torch.equal(explanation.heatmap, cam(activations, gradients, **choices)[0]) and explanation.valid.all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["features.1", "features.3", None])
def test_a_channels_last_model_stays_channels_last_and_has_the_map_of_the_contiguous_one(layer, method, images):
    model, layouts = ConvNet(), []
    expected = explain(model, images, topk=2, layer=layer, method=method, relu=False)
    model = model.to(memory_format=torch.channels_last)
    model.at_head = lambda maps: layouts.append(maps.is_contiguous(memory_format=torch.channels_last))
    with unchanged(model):
        images = images.to(memory_format=torch.channels_last)
        explanation = explain(model, images, target=expected.target, layer=layer, method=method, relu=False)
    assert explanation.layer == expected.layer and layouts and all(layouts)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert_near(explanation.heatmap, expected.heatmap, SAME_INPUTS[torch.float32])


def test_a_channels_last_image_without_a_batch_is_a_batch_of_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = model.to(memory_format=torch.channels_last)
    batch = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    explanation = explain(model, batch[0], target=1, relu=False)
    assert torch.equal(explanation.heatmap, explain(model, batch[:1], target=1, relu=False).heatmap)
    assert explanation.valid.all()
