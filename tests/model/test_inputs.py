"""The model's inputs: images with or without a batch, tuples and dicts, and what convolutions tell about the images."""

import pytest
import torch
from support.naive import heatmaps, of_class
from support.networks import ConvNet, TwoInputs
from support.tolerances import SAME_INPUTS
from torch import nn

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast._model.inputs import ImageAxes, Inputs, check_inputs, per_side, unwrap_model


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


def convolutions_of(*modules):
    return ImageAxes(nn.Sequential(*modules))


def test_convolutions_tell_the_rank_the_channels_and_the_patches_of_images():
    axes = ImageAxes(ConvNet())
    assert (axes.rank, axes.channels, axes.patches) == (2, [3, 8], ((2, 2),))
    axes = convolutions_of(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, stride=5))
    assert (axes.rank, axes.channels, axes.patches) == (1, [2, 4], ((5,),))
    axes = convolutions_of(nn.Conv3d(3, 4, (2, 16, 16), (2, 16, 16)), nn.ConvTranspose2d(4, 3, 2, 2))
    assert (axes.rank, axes.channels, axes.patches) == (3, [3], ((2, 16, 16),))


def test_without_convolutions_or_with_several_kinds_images_have_two_sides():
    assert (convolutions_of(nn.Linear(4, 4)).rank, convolutions_of(nn.Linear(4, 4)).patches) == (2, ())
    axes = convolutions_of(nn.Conv1d(2, 4, 3, stride=7), nn.Conv2d(3, 4, 4, 4))
    assert (axes.rank, axes.patches) == (2, ((4, 4),))


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((2, 3, 16, 24), (16, 24)),
        ((2, 16, 24, 3), (16, 24)),  # channels last
        ((2, 8, 3, 16, 24), (8, 16, 24)),  # frames before channels
        ((2, 5, 16, 24), (16, 24)),  # no axis has three channels
        ((2, 16, 3, 3), (3, 3)),  # two axes may be the channels
    ],
)
def test_the_sides_of_images_are_all_axes_but_batch_and_channels(shape, sides):
    assert convolutions_of(nn.Conv2d(3, 4, 3)).sides(torch.zeros(shape)) == sides


@pytest.mark.parametrize(
    ("convolution", "value", "sides"),
    [(nn.Conv1d, 3, (3,)), (nn.Conv2d, 3, (3, 3)), (nn.Conv3d, [1, 2, 2], (1, 2, 2)), (nn.Conv2d, (4, 2), (4, 2))],
)
def test_strides_and_kernel_sizes_are_read_per_side(convolution, value, sides):
    assert per_side(convolution(3, 4, 1), value) == sides


def test_images_become_the_arguments_of_the_model(images):
    model, shift = ConvNet(), torch.zeros(3)
    inputs, batch = check_inputs(model, 2, images)
    assert inputs.args == (images,) and inputs.kwargs == {} and batch is images
    inputs, batch = check_inputs(model, 2, images[0])
    assert batch.shape == (1, 3, 16, 16) and torch.equal(batch, images[:1]) and inputs.args[0] is batch
    inputs, batch = check_inputs(model, 2, (shift, images, "text"))
    assert inputs.args == (shift, images, "text") and batch is images and inputs.tensors == [shift, images]
    inputs, batch = check_inputs(model, 2, {"shift": shift, "images": images})
    assert inputs.args == () and inputs.kwargs["images"] is images and batch is images


def test_a_function_is_mapped_over_the_tensors_among_the_arguments():
    inputs = Inputs((torch.ones(1), "text"), {"scale": torch.ones(2), "flag": True})
    doubled = inputs.map(lambda tensor: tensor * 2)
    assert doubled.args[0].tolist() == [2] and doubled.args[1] == "text"
    assert doubled.kwargs["scale"].tolist() == [2, 2] and doubled.kwargs["flag"] is True
    assert inputs.args[0].tolist() == [1]
    assert doubled(lambda *args, **kwargs: (args, kwargs)) == (doubled.args, doubled.kwargs)


def test_a_compiled_wrapper_is_unwrapped_unless_it_has_hooks():
    model = ConvNet()
    assert unwrap_model(model) is model
    assert unwrap_model(torch.compile(model, backend="eager")) is model
    hooked = torch.compile(model, backend="eager")
    hooked.register_forward_hook(lambda *_: None)
    assert unwrap_model(hooked) is hooked
