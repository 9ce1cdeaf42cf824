"""Layers are named by a dotted name, by any of several names, or by the module itself."""

import torch
from support.networks import ConvNet

import gradcam_fast


def test_a_layer_may_be_given_as_a_module(images):
    model = ConvNet()
    by_module = gradcam_fast.explain(model, images, layer=model.features[3])
    by_name = gradcam_fast.explain(model, images, layer="features.3")
    assert by_module.layer == by_name.layer == "features.3"
    assert torch.equal(by_module.heatmap, by_name.heatmap)


def test_a_module_with_two_names_is_explained_under_either(images):
    model = ConvNet()
    model.alias = model.features[3]
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    assert torch.equal(gradcam_fast.explain(model, images, layer="alias").heatmap, expected)
