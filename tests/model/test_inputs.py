"""The model's inputs: images with or without a batch, tuples and dicts, and what convolutions tell about the images."""

import pytest
import torch
from support.naive import heatmaps, of_class
from support.networks import ConvNet, TwoInputs
from support.tolerances import SAME_INPUTS
from torch import nn

import gradcam_fast
from gradcam_fast import explain


@pytest.mark.parametrize("pack", [lambda *two: two, lambda *two: dict(zip(("images", "shift"), two, strict=True))])
def test_a_model_of_several_inputs_takes_a_tuple_or_a_dict(pack, images):
    model, shift = TwoInputs(), torch.tensor([1.0, -2.0, 0.5])
    explanation = gradcam_fast.explain(model, pack(images, shift), target=1, layer="features.3")
    assert torch.equal(explanation.logits, model(images, shift))
    expected = heatmaps(model, "features.3", images, of_class(1), shift)
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=SAME_INPUTS[torch.float32])


def test_an_image_without_a_batch_is_a_batch_of_one(images):
    model = ConvNet()
    explanation = gradcam_fast.explain(model, images[1], layer="features.3")
    expected = gradcam_fast.explain(model, images[1:2], layer="features.3")
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)
    assert explanation.heatmap.shape == (1, 16, 16)


def test_strides_of_convolutions_may_be_lists_or_one_number(images):
    model = ConvNet()
    expected = explain(model, images)
    for convolution in model.features[::3]:
        convolution.stride = list(convolution.stride)
    assert torch.equal(explain(model, images).heatmap, expected.heatmap)
    model.features[0].stride = 2
    assert torch.equal(explain(model, images).heatmap, expected.heatmap)


def test_images_may_be_channels_last(images):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = ConvNet()

        def forward(self, images):
            return self.model(images.movedim(-1, 1))

    model = Last()
    sides = torch.randn(2, 3, 16, 24)
    expected = explain(model.model, sides)
    explanation = explain(model, sides.movedim(1, -1))
    assert explanation.layer == f"model.{expected.layer}" and torch.equal(explanation.heatmap, expected.heatmap)
