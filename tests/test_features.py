"""`feature_maps`: what a full graph gives, of one layer or several from one forward, and a model left as it was."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.naive import full_graph, highest, of_class
from support.networks import ConvNet, Repeating, Unbatchable
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast.features import feature_maps


def test_activations_and_gradients_are_those_of_a_full_graph(images):
    model = ConvNet()
    for layer in ("features.0", "features.3", "features"):
        found = feature_maps(model, images, layer=layer)
        activations, gradients, _ = full_graph(model, layer, images, highest)
        assert found.layer == layer
        torch.testing.assert_close(found.activations, activations)
        torch.testing.assert_close(found.gradients, gradients)


@pytest.mark.parametrize("network", [ConvNet, Unbatchable])
def test_several_targets_give_the_gradients_of_each(network, images):
    model = network()
    found = feature_maps(model, images, layer="features.3", target=[[0, 4]] * 3)
    for k, target in enumerate((0, 4)):
        activations, gradients, _ = full_graph(model, "features.3", images, of_class(target))
        torch.testing.assert_close(found.activations, activations)
        torch.testing.assert_close(found.gradients[:, k], gradients)


@pytest.mark.parametrize("choices", [{}, {"topk": 2}, {"target": lambda out: out.sum(1)}])
def test_cam_makes_of_them_what_explain_returns(choices, images):
    model = ConvNet()
    for layer in (None, "features.1"):
        found = feature_maps(model, images, layer=layer, **choices)
        explanation = gradcam_fast.explain(model, images, layer=layer, **choices)
        heatmap, _, _ = gradcam_fast.cam(found.activations, found.gradients, (16, 16))
        assert found.layer == explanation.layer
        assert torch.equal(heatmap, explanation.heatmap) and explanation.valid.any()


def test_several_layers_come_from_one_forward_in_the_order_asked_for(images):
    model = ConvNet()
    asked = ["features.3", "features.0", model.features[3]]
    found = feature_maps(model, images, layer=asked)
    assert model.calls == 1
    assert [maps.layer for maps in found] == ["features.3", "features.0", "features.3"]
    for maps in found:
        alone = feature_maps(model, images, layer=maps.layer)
        torch.testing.assert_close(maps.activations, alone.activations)
        torch.testing.assert_close(maps.gradients, alone.gradients)
    assert [maps.layer for maps in feature_maps(model, images, layer=["features.0"])] == ["features.0"]


class Patches(nn.Module):
    """Images to tokens (B,1+16,6) behind a class token, of which the middle layer is a norm."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)
        self.eval()

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        return self.head(tokens.square().mean(1))


def test_tokens_are_read_as_planes(images):
    model = Patches()
    found = feature_maps(model, images, layer="norm")
    activations, gradients, _ = full_graph(model, "norm", images, highest)
    for maps, tokens in ((found.activations, activations), (found.gradients, gradients)):
        torch.testing.assert_close(maps, tokens[:, 1:].transpose(1, 2).reshape(3, 6, 4, 4))


def test_the_model_is_left_as_it_was_and_nothing_requires_grad(images):
    model = ConvNet().train()
    with unchanged(model):
        found = feature_maps(model, images, layer=["features.0", "features.3"], topk=2)
    assert not any(maps.requires_grad for each in found for maps in (each.activations, each.gradients))


def test_it_works_inside_no_grad_and_inference_mode(images):
    model = ConvNet()
    expected = feature_maps(model, images, layer="features.3").gradients
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(feature_maps(model, images, layer="features.3").gradients, expected)


def test_of_a_layer_that_runs_several_times_the_last_run_counts(images):
    model = Repeating(3)
    found = feature_maps(model, images, layer="block")
    activations, gradients, _ = full_graph(model, "block", images, highest)
    torch.testing.assert_close(found.activations, activations)
    torch.testing.assert_close(found.gradients, gradients)


def test_it_is_printed_by_its_shapes(images):
    found = feature_maps(ConvNet(), images, layer="features.3", topk=2)
    assert repr(found) == "FeatureMaps(activations (3, 12, 4, 4) at features.3, gradients (3, 2, 12, 4, 4))"


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"layer": "features.9"}, ValueError, "layer 'features.9' is not in ConvNet"),
        ({"layer": []}, ValueError, "names no layer"),
        ({"layer": "head.4"}, ValueError, r"layer 'head.4' returns shape \(3, 5\) for a batch of 3"),
        ({"target": 9, "layer": "features"}, ValueError, "target 9 is out of range"),
        ({"tokens": "few"}, ValueError, "tokens='few' is no grid"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(choices, error, message, images):
    with pytest.raises(error, match=message):
        feature_maps(ConvNet(), images, **choices)


def test_what_draws_is_imported_when_it_is_asked_for():
    code = "import sys, gradcam_fast; print('PIL' in sys.modules, gradcam_fast.features.feature_maps.__name__)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(gradcam_fast.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["False", "feature_maps"]
    with pytest.raises(AttributeError, match="no attribute 'figurs'"):
        gradcam_fast.figurs  # noqa: B018
