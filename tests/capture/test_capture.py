"""A capture holds the activations and gradients of the full graph, to the bit, from one forward.

The same `cam` is called with what the full graph holds, so that heatmaps are compared to the bit.
"""

import functools

import pytest
import torch
from support.naive import full_graph, heatmaps, highest
from support.networks import ConvNet
from support.tolerances import SAME_INPUTS

import gradcam_fast
from gradcam_fast.features import feature_maps

METHODS = ["gradcam", "gradcam++", "xgradcam", "hirescam", "elementwise", "layercam"]
TOLERANCE = SAME_INPUTS[torch.float32]


def assert_captured_to_the_bit(model, layer, images, method):
    """What is captured and what is explained equal the full graph; raw maps at the layer's own size are compared."""
    activations, gradients, logits = full_graph(model, layer, images, highest)
    maps = feature_maps(model, images, layer=layer)
    assert torch.equal(maps.activations, activations) and torch.equal(maps.gradients, gradients)
    choices = {"size": activations.shape[-2:], "method": method, "normalize": "none", "relu": False}
    explanation = gradcam_fast.explain(model, images, layer=layer, **choices)
    # The memory layout of the gradients decides the order of sums, so the full graph's gradients may differ in bits.
    expected, low, high = gradcam_fast.cam(maps.activations, maps.gradients, **choices)
    assert torch.equal(explanation.heatmap, expected) and expected.abs().max() > 0
    assert torch.equal(explanation.raw_min, low) and torch.equal(explanation.raw_max, high)
    assert torch.equal(explanation.logits, logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.2", "features.3", "features"])
def test_any_layer_is_captured_as_in_the_full_graph_despite_inplace_relus(layer, method, images):
    assert_captured_to_the_bit(ConvNet(), layer, images, method)


@pytest.fixture(scope="module")
def known_network():
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    return functools.cache(lambda name: getattr(models, name)().eval())


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("resnet18", "layer4"),
        ("resnet18", "layer3.0"),
        ("resnet18", "layer4.1.bn2"),  # followed by an in-place addition, then an in-place ReLU
        ("resnet18", "layer4.1.relu"),  # runs twice per forward
        ("densenet121", "features"),  # followed by a functional in-place ReLU
        ("densenet121", "features.transition3.conv"),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_real_architecture_is_captured_as_in_the_full_graph(network, layer, layout, known_network):
    images = torch.randn(2, 3, 64, 64).to(memory_format=layout)
    # HiResCAM reads every single activation and gradient.
    assert_captured_to_the_bit(known_network(network), layer, images, "hirescam")


def test_the_heatmap_is_the_textbooks(images):
    model = ConvNet()
    heatmap = gradcam_fast.explain(model, images, layer="features.3").heatmap
    expected = heatmaps(model, "features.3", images, highest)
    torch.testing.assert_close(heatmap.double(), expected, rtol=0, atol=TOLERANCE)


def test_prediction_and_explanation_come_from_one_forward(images):
    model = ConvNet()
    with torch.no_grad():
        logits = model(images)
    model.runs.clear()
    explanation = gradcam_fast.explain(model, images, topk=3, layer="features.3")
    assert model.calls == 1
    assert torch.equal(explanation.logits, logits)


def test_a_layer_that_returns_its_input_leaves_the_images_without_a_graph(images):
    model = torch.nn.Sequential(torch.nn.Identity(), ConvNet()).eval()
    assert_captured_to_the_bit(model, "0", images, "hirescam")
    assert images.is_leaf and not images.requires_grad


def test_the_output_changed_by_a_hook_of_the_model_is_captured(images):
    model = ConvNet()
    model.features[3].register_forward_hook(lambda _, __, output: output * 2 + 1)
    assert_captured_to_the_bit(model, "features.3", images, "hirescam")


def test_hooks_of_the_model_before_and_behind_the_layer_run_once(images):
    model, runs = ConvNet(), []
    model.features[0].register_forward_pre_hook(lambda _, inputs: (runs.append("trunk"), (inputs[0] + 1,))[1])
    model.head[4].register_full_backward_hook(lambda *_: runs.append("backward"))
    assert_captured_to_the_bit(model, "features.3", images, "hirescam")
    runs.clear()
    gradcam_fast.explain(model, images, layer="features.3")
    assert runs == ["trunk", "backward"]
