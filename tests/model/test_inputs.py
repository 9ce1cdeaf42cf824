"""The model's inputs: images with or without a batch, tuples and dicts, and what convolutions tell about the images."""

import pytest
import torch
from support.naive import heatmaps, of_class
from support.networks import ConvNet, TwoInputs
from support.refusals import assert_says
from support.tolerances import SAME_INPUTS
from torch import nn

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast._layer_search.pictures import try_inputs
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


class AddsChannels(nn.Module):
    """Takes (B,*sides), and adds the axis of channels itself."""

    def __init__(self, model, turned=False):
        super().__init__()
        self.model, self.turned = model, turned

    def forward(self, batch):
        return self.model((batch.mT if self.turned else batch).unsqueeze(1))


def one_channel(rank):
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[rank]
    layers = conv(1, 6, 3, 2), nn.ReLU(), conv(6, 4, 3), nn.ReLU(), nn.Flatten(2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("rank", "sides"), [(1, (60,)), (2, (9, 40))], ids=["(B,L)", "(B,chans,time)"])
def test_batches_without_channels_go_to_models_that_take_them(rank, sides, batch):
    model, samples = one_channel(rank), torch.randn(batch, *sides)
    expected = explain(model, samples.unsqueeze(1), target=1, relu=False)
    adds = AddsChannels(model).eval()
    for samples_or_dict in (samples, {"batch": samples}, (samples,)):
        explanation = explain(adds, samples_or_dict, target=1, relu=False)
        assert explanation.layer == "model.3" and explanation.heatmap.shape == (batch, *sides)
        assert torch.equal(explanation.heatmap, expected.heatmap)


@pytest.mark.parametrize("sides", [(24, 16), (20, 20)])
@pytest.mark.parametrize("size", [None, (10, 30)])
def test_maps_of_spectrograms_that_the_model_turns_are_turned_back(sides, size):
    model, spectrograms = one_channel(2), torch.randn(3, *sides)  # (B,T,F), as audio transformers take them
    explanation = explain(AddsChannels(model, turned=True).eval(), spectrograms, target=1, relu=False, size=size)
    turned = explain(model, spectrograms.mT.unsqueeze(1), target=1, relu=False, size=size and size[::-1])
    assert explanation.heatmap.shape == (3, *(size or sides))
    assert torch.equal(explanation.heatmap, turned.heatmap.mT)


def test_series_may_have_channels_last():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Conv1d(7, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())

        def forward(self, series):
            return self.model(series.mT)

    model, series = Turns().eval(), torch.randn(3, 40, 7)
    expected = explain(model.model, series.mT, target=1)
    explanation = explain(model, series, target=1)
    assert explanation.heatmap.shape == (3, 40) and torch.equal(explanation.heatmap, expected.heatmap)


def test_series_of_features_go_to_networks_without_convolutions():
    model = nn.Sequential(nn.Linear(7, 16), nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True))
    model.append(nn.Flatten()).append(nn.Linear(16 * 40, 5)).eval()
    explanation = explain(model, torch.randn(3, 40, 7), target=1, layer="1", relu=False)
    assert explanation.heatmap.shape == (3, 40) and explanation.valid.all()


def test_a_model_is_asked_once_how_it_takes_images_without_channels():
    model, runs = AddsChannels(one_channel(1)).eval(), []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    explainer = gradcam_fast.Explainer(model, layer="model.3")
    explainer(torch.randn(3, 60))
    runs.clear()
    explainer(torch.randn(3, 60))
    assert len(runs) == 1


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 16, 16), (2, 4, 3, 16, 16)])
def test_what_the_model_itself_refuses_is_said_to_come_from_it(shape):
    with pytest.raises(ValueError) as refusal:
        explain(ConvNet(), torch.rand(shape))
    assert_says(refusal, ValueError, ("the model itself", str(shape), "RuntimeError", "(B,C,H,W)", "(B,T,C,H,W)"))
    assert isinstance(refusal.value.__cause__, RuntimeError)


def test_series_for_a_model_that_makes_spectrograms_itself_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"\(2, 1024\); .* makes spectrograms .* explain the part behind that step"):
        explain(ConvNet(), torch.rand(2, 1024))


def test_complex_images_are_refused_with_what_to_do():
    with pytest.raises(TypeError, match="expected real values: give magnitudes, or the real and imaginary parts"):
        explain(ConvNet(), torch.rand(2, 3, 16, 16, dtype=torch.complex64))


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
        ((2, 8, 3, 16, 24), (16, 24)),  # frames of a clip
        ((2, 3, 8, 16, 24), (16, 24)),  # frames behind channels
        ((2, 8, 16, 24, 3), (16, 24)),  # frames with channels last
        ((2, 5, 16, 24), (16, 24)),  # no axis has three channels
        ((2, 16, 3, 3), (3, 3)),  # two axes may be the channels
    ],
)
def test_the_sides_of_images_are_all_axes_but_batch_and_channels(shape, sides):
    assert convolutions_of(nn.Conv2d(3, 4, 3)).sides(torch.zeros(shape)) == sides


def test_videos_for_3d_convolutions_may_have_frames_before_channels():
    axes = convolutions_of(nn.Conv3d(3, 4, 3))
    videos = torch.zeros(2, 8, 3, 16, 24)
    assert axes.sides(videos) == (8, 16, 24) and axes.picture_axis(videos) is None


@pytest.mark.parametrize(("shape", "axis"), [((2, 8, 3, 9, 9), 1), ((2, 3, 8, 9, 9), 2), ((2, 3, 3, 9, 9), 1)])
def test_five_axes_are_several_pictures_for_2d_convolutions(shape, axis):
    assert convolutions_of(nn.Conv2d(3, 4, 3)).picture_axis(torch.zeros(shape)) == axis


@pytest.mark.parametrize(
    ("convolution", "value", "sides"),
    [(nn.Conv1d, 3, (3,)), (nn.Conv2d, 3, (3, 3)), (nn.Conv3d, [1, 2, 2], (1, 2, 2)), (nn.Conv2d, (4, 2), (4, 2))],
)
def test_strides_and_kernel_sizes_are_read_per_side(convolution, value, sides):
    assert per_side(convolution(3, 4, 1), value) == sides


def test_images_become_the_arguments_of_the_model(images):
    model, shift = ConvNet(), torch.zeros(3)
    inputs, _ = check_inputs(model, ImageAxes(model), images, try_inputs)
    assert inputs.args == (images,) and inputs.kwargs == {} and inputs.images is images
    inputs, _ = check_inputs(model, ImageAxes(model), images[0], try_inputs)
    assert inputs.images.shape == (1, 3, 16, 16) and torch.equal(inputs.images, images[:1])
    inputs, _ = check_inputs(model, ImageAxes(model), (shift, images, "text"), try_inputs)
    assert inputs.args == (shift, images, "text") and inputs.images is images and inputs.tensors == [shift, images]
    inputs, _ = check_inputs(model, ImageAxes(model), {"shift": shift, "images": images}, try_inputs)
    assert inputs.args == () and inputs.kwargs["images"] is images and inputs.images is images


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


@pytest.mark.parametrize("layer", ["features.3", None])
@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (torch.Tensor.to_sparse, "images is a tensor of layout sparse_coo; give a dense floating tensor"),
        (torch.Tensor.to_mkldnn, "images is a tensor of layout _mkldnn"),
        (lambda images: torch.nested.nested_tensor(list(images)), "images is a nested tensor, of images of several"),
        (lambda images: images.to("meta"), "images is on the meta device, which has shapes only"),
    ],
)
def test_images_that_are_not_dense_are_refused_in_a_sentence(convert, said, layer, images):
    with pytest.raises(TypeError, match=said):
        gradcam_fast.explain(ConvNet(), convert(images), layer=layer)


def test_a_function_transform_is_named(images):
    model = ConvNet()
    with pytest.raises(TypeError, match=r"images is inside torch\.vmap, grad or another function transform"):
        torch.vmap(lambda image: gradcam_fast.explain(model, image[None], layer="features.3").heatmap)(images)


def test_fake_tensors_are_named(images):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode, pytest.raises(TypeError, match="images is a fake tensor, which has no values"):
        gradcam_fast.explain(ConvNet(), mode.from_tensor(images), layer="features.3")
