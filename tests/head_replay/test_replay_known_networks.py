"""Replays in known networks, from layers at their ends and deep inside their blocks."""

import pytest
import torch
from support import naive_methods
from torch import nn

import gradcam_fast
from gradcam_fast._head_replay.recording import record
from gradcam_fast._model.inputs import Inputs
from gradcam_fast._model.target_layer import TargetLayer

LAYERS = [
    ("resnet18", 64, "layer2.0.conv1"),  # the shortcut reads an earlier map
    ("resnet18", 64, "layer4.1.relu"),  # a shared ReLU; the sum is written in place
    ("densenet121", 64, "features.denseblock4.denselayer3.conv1"),
    ("mobilenet_v3_small", 64, "features.8.block.2"),
    ("googlenet", 64, "inception4a.branch2.0"),
    ("shufflenet_v2_x0_5", 64, "stage3.1.branch2.3"),
    ("vgg11_bn", 64, "features.28"),
    ("convnext_tiny", 64, "features.7.1.block.0"),
    ("vit_b_32", 224, "encoder.layers.encoder_layer_9.ln_1"),
    ("swin_t", 64, "features.7.1.norm1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "layer"), LAYERS)
def test_a_replay_gives_what_the_whole_network_gives(name, side, layer):
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    model = models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {})).eval()
    nn.init.normal_([module for module in model.modules() if isinstance(module, nn.Linear)][-1].weight)
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        recorded = record(model, Inputs((image,), {}), TargetLayer(layer, model.get_submodule(layer)))
        activations = recorded.activations
        factors = torch.tensor([1.0, 0.0, 0.5]).reshape(3, *[1] * (activations.dim() - 1))
        returned = recorded.replay(activations * factors, 3)
        for row, factor in enumerate(factors):
            expected = naive_methods.output_with(model, layer, image, lambda output, factor=factor: output * factor)[0]
            assert (returned[row] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_eigencam_explains_a_detector_without_any_target(name):
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    model = models.get_model(name, weights=None, weights_backbone=None, num_classes=3).eval()
    layer = "backbone.features.1" if name.startswith("ssd") else "backbone.body"
    explanation = gradcam_fast.explain(model, torch.rand(2, 3, 96, 96), layer=layer, method="eigencam", size=24)
    assert explanation.heatmap.shape == (2, 24, 24) and explanation.valid.all()
    assert isinstance(explanation.logits, list) and explanation.score.isnan().all()
