"""A capture is the same in all grad modes, with frozen weights, in train mode, under autocast and in other dtypes."""

import contextlib

import pytest
import torch
from support.naive import full_graph, gradcam, of_class
from support.networks import ConvNet, Muted, TwoInputs, TwoLevels, conv_relu, pooled_head
from support.tolerances import RECIPE_PARITY, SAME_INPUTS
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast._capture.capture import _NEED_GRAD_ENABLED

TOLERANCE = SAME_INPUTS[torch.float32]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_grad_mode_changes_nothing(mode, images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3")
    with mode():
        explanation = gradcam_fast.explain(model, images, layer="features.3")
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)


@pytest.mark.parametrize("inside", [True, False])
def test_images_made_in_inference_mode_are_explained(inside, images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    with torch.inference_mode():
        inference_images = images.clone()
    with torch.inference_mode() if inside else contextlib.nullcontext():
        assert torch.equal(gradcam_fast.explain(model, inference_images, layer="features.3").heatmap, expected)


def test_other_inputs_made_in_inference_mode_may_be_used_behind_the_layer(images):
    model, shift = TwoInputs(), torch.tensor([1.0, -2.0, 0.5])
    expected = gradcam_fast.explain(model, (images, shift), target=1, layer="features.3").heatmap
    with torch.inference_mode():
        inputs = images.clone(), shift.clone()
    assert torch.equal(gradcam_fast.explain(model, inputs, target=1, layer="features.3").heatmap, expected)


def test_a_model_made_in_inference_mode_is_refused(images):
    with torch.inference_mode():
        model = ConvNet()
    with unchanged(model), pytest.raises((RuntimeError, ValueError), match="inference_mode"):
        gradcam_fast.explain(model, images, layer="features.3")


@pytest.mark.parametrize("frozen", ["", "features", "head"])
def test_frozen_parameters_change_nothing(frozen, images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    model.get_submodule(frozen).requires_grad_(False)
    assert torch.equal(gradcam_fast.explain(model, images, layer="features.3").heatmap, expected)


def test_in_train_mode_batch_norm_uses_the_batch_and_dropout_drops(images):
    model = ConvNet(dropout=0.5).train()
    torch.manual_seed(3)
    activations, gradients, logits = full_graph(model, "features.3", images, of_class(2))
    torch.manual_seed(3)
    explanation = gradcam_fast.explain(model, images, target=2, layer="features.3")
    assert torch.equal(explanation.logits, logits)
    torch.testing.assert_close(
        explanation.heatmap.double(), gradcam(activations, gradients, (16, 16)), rtol=0, atol=TOLERANCE
    )


def test_autocast_applies_to_forward_and_explanation(images):
    model = ConvNet()
    with torch.autocast("cpu", torch.bfloat16):
        activations, gradients, logits = full_graph(model, "features.3", images, of_class(1))
        explanation = gradcam_fast.explain(model, images, target=1, layer="features.3")
    assert activations.dtype == logits.dtype == torch.bfloat16
    assert torch.equal(explanation.logits, logits) and explanation.heatmap.dtype == torch.float32
    expected = gradcam(activations, gradients, (16, 16))
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_precisions_give_float32_heatmaps(dtype, images):
    model, images = ConvNet().to(dtype), images.to(dtype)
    activations, gradients, _ = full_graph(model, "features.3", images, of_class(1))
    heatmap = gradcam_fast.explain(model, images, target=1, layer="features.3").heatmap
    assert heatmap.dtype == torch.float32
    expected = gradcam(activations, gradients, (16, 16))
    torch.testing.assert_close(heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[dtype])


def test_images_that_require_grad_get_no_gradient(images):
    model = ConvNet()
    heatmap = gradcam_fast.explain(model, images.requires_grad_(), layer="features.3").heatmap
    assert images.grad is None and images.requires_grad and not heatmap.requires_grad
    assert torch.equal(heatmap, gradcam_fast.explain(model, images.detach(), layer="features.3").heatmap)


def test_a_model_without_gradients_is_refused_with_the_layers_name(images):
    model = Muted()
    with unchanged(model), pytest.raises(RuntimeError, match=r"features\.3"):
        gradcam_fast.explain(model, images, layer="features.3")


def test_a_trunk_that_turns_gradients_on_changes_nothing(images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    model.at_start = lambda _: torch.set_grad_enabled(True)
    with unchanged(model):
        heatmap = gradcam_fast.explain(model, images, layer="features.3").heatmap
    assert torch.equal(heatmap, expected)


class TrunkWithoutGrad(nn.Module):
    """A model that runs its trunk under no_grad, as one does to train only the head."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.runs = conv_relu(), pooled_head(8), []
        self.eval()

    def forward(self, images):
        self.runs.append(1)
        with torch.no_grad():
            maps = self.trunk(images)
        return self.head(maps)


@pytest.mark.parametrize("layer", [None, "trunk"])
def test_a_trunk_run_without_gradients_is_explained(layer, images):
    torch.manual_seed(4)
    model = TrunkWithoutGrad()
    same = nn.Sequential(model.trunk, model.head)
    activations, gradients, _ = full_graph(same, "0", images, lambda output: output.max(1).values)
    with unchanged(model):
        explanation = explain(model, images, layer=layer)
    assert explanation.layer == "trunk"
    torch.testing.assert_close(
        explanation.heatmap.double(), gradcam(activations, gradients, (16, 16)), rtol=0, atol=RECIPE_PARITY
    )
    model.runs.clear()
    explain(model, images, layer=layer)
    assert len(model.runs) == 1


def test_a_layer_without_influence_does_not_turn_gradients_on_for_the_model():
    model = TwoLevels()
    with pytest.raises(RuntimeError, match="does not depend on layer 'branch'"):
        explain(model, torch.randn(2, 3, 9, 9), layer="branch", output=lambda out: out[0])
    assert model not in _NEED_GRAD_ENABLED
