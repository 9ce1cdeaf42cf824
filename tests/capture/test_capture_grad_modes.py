"""Capture in every mode a caller may be in: grad modes, frozen or half-precision models, train mode, autocast.

Knows nothing of what is left behind afterwards; here the answers themselves are compared.
"""

import contextlib

import pytest
import torch
from support.naive import full_graph, gradcam, of_class
from support.networks import ConvNet, Muted, TwoInputs
from support.tolerances import SAME_INPUTS
from support.unchanged import unchanged

import gradcam_fast

SCALED = SAME_INPUTS[torch.float32]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_grad_mode_changes_nothing(mode, images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3")
    with mode():
        found = gradcam_fast.explain(model, images, layer="features.3")
    assert torch.equal(found.heatmap, expected.heatmap) and torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("inside", [True, False])
def test_images_made_in_inference_mode_are_explained(inside, images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    with torch.inference_mode():
        inference_images = images.clone()
    with torch.inference_mode() if inside else contextlib.nullcontext():
        assert torch.equal(gradcam_fast.explain(model, inference_images, layer="features.3").heatmap, expected)


def test_inputs_made_in_inference_mode_may_be_used_behind_the_layer(images):
    model, shift = TwoInputs(), torch.tensor([1.0, -2.0, 0.5])
    expected = gradcam_fast.explain(model, (images, shift), target=1, layer="features.3").heatmap
    with torch.inference_mode():
        inputs = images.clone(), shift.clone()
    assert torch.equal(gradcam_fast.explain(model, inputs, target=1, layer="features.3").heatmap, expected)


def test_a_model_loaded_in_inference_mode_is_refused_rather_than_explained_wrongly(images):
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


def test_batch_norm_uses_the_statistics_of_the_batch_and_dropout_drops_in_train_mode(images):
    model = ConvNet(dropout=0.5).train()
    torch.manual_seed(3)
    activations, gradients, logits = full_graph(model, "features.3", images, of_class(2))
    torch.manual_seed(3)
    found = gradcam_fast.explain(model, images, target=2, layer="features.3")
    assert torch.equal(found.logits, logits)
    torch.testing.assert_close(found.heatmap.double(), gradcam(activations, gradients, (16, 16)), rtol=0, atol=SCALED)


def test_autocast_lowers_the_precision_of_both_forward_and_explanation(images):
    model = ConvNet()
    with torch.autocast("cpu", torch.bfloat16):
        activations, gradients, logits = full_graph(model, "features.3", images, of_class(1))
        found = gradcam_fast.explain(model, images, target=1, layer="features.3")
    assert activations.dtype == logits.dtype == torch.bfloat16
    assert torch.equal(found.logits, logits) and found.heatmap.dtype == torch.float32
    expected = gradcam(activations, gradients, (16, 16))
    torch.testing.assert_close(found.heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_precision_give_float32_maps(dtype, images):
    model, images = ConvNet().to(dtype), images.to(dtype)
    activations, gradients, _ = full_graph(model, "features.3", images, of_class(1))
    found = gradcam_fast.explain(model, images, target=1, layer="features.3").heatmap
    assert found.dtype == torch.float32
    expected = gradcam(activations, gradients, (16, 16))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=SAME_INPUTS[dtype])


def test_images_that_require_a_gradient_are_left_without_one(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images.requires_grad_(), layer="features.3").heatmap
    assert images.grad is None and images.requires_grad and not found.requires_grad
    assert torch.equal(found, gradcam_fast.explain(model, images.detach(), layer="features.3").heatmap)


def test_a_head_without_gradients_is_refused_by_the_name_of_the_layer(images):
    model = Muted()
    with unchanged(model), pytest.raises(RuntimeError, match=r"features\.3"):
        gradcam_fast.explain(model, images, layer="features.3")


def test_a_trunk_that_records_gradients_in_spite_of_everything_changes_nothing(images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    model.at_start = lambda _: torch.set_grad_enabled(True)
    with unchanged(model):
        found = gradcam_fast.explain(model, images, layer="features.3").heatmap
    assert torch.equal(found, expected)
