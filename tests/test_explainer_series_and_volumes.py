"""Time series (B,C,L) and volumes (B,C,D,H,W) are explained like images, with one axis or three."""

import pytest
import torch
from support import naive
from support.refusals import assert_says
from support.tolerances import RECIPE_PARITY, SAME_INPUTS
from torch import nn
from torch.nn import functional as F

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast.ops.arguments import METHODS

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def network(rank):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[rank]
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[rank]
    return nn.Sequential(
        conv(2, 6, 3, stride=2), nn.ReLU(inplace=True), conv(6, 8, 2), nn.ReLU(), pool(2), nn.Flatten(),
        nn.Linear(8 * 2**rank, 4),
    ).eval()  # fmt: skip


SIDES = {1: (50,), 3: (12, 14, 16)}


def heatmaps(model, images, category):
    activations, gradients, _ = naive.full_graph(model, "3", images, naive.of_class(category))
    pixels = tuple(range(2, images.dim()))
    raw = (gradients.double().mean(pixels, keepdim=True) * activations.double()).sum(1, keepdim=True)
    raw = F.interpolate(raw, images.shape[2:], mode=MODES[len(pixels)], align_corners=False)
    low, high = raw.amin(pixels, keepdim=True), raw.amax(pixels, keepdim=True)
    return ((raw - low) / (high - low))[:, 0]


@pytest.mark.parametrize("rank", [1, 3])
def test_series_and_volumes_are_explained(rank):
    model, images = network(rank), torch.randn(3, 2, *SIDES[rank])
    explanation = explain(model, images, target=[[1, 3]] * 3, relu=False)
    assert explanation.layer == "3" and explanation.valid.all()
    expected = torch.stack([heatmaps(model, images, category) for category in (1, 3)], 1)
    torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=RECIPE_PARITY)
    alone = explain(model, images[0], target=1, relu=False)
    torch.testing.assert_close(alone.heatmap.double(), expected[:1, 0], rtol=0, atol=RECIPE_PARITY)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("normalize", ["minmax", "none"])
def test_maps_of_several_layers_of_series_and_volumes_are_averaged(rank, normalize):
    model, images = network(rank), torch.randn(3, 2, *SIDES[rank])
    maps = {name: explain(model, images, layer=name, relu=False, normalize=normalize).heatmap for name in ("1", "3")}
    mean = (maps["1"] + maps["3"]) / 2
    if normalize == "minmax":
        pixels = tuple(range(1, mean.dim()))
        low, high = mean.amin(pixels, keepdim=True), mean.amax(pixels, keepdim=True)
        mean = (mean - low) / (high - low)
    heatmap = explain(model, images, layer=["1", "3"], relu=False, normalize=normalize).heatmap
    torch.testing.assert_close(heatmap, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_op_treats_one_axis_or_three_as_it_treats_two(rank, method):
    """An axis of one sample changes nothing: a series is an image of one row."""
    activations, gradients = torch.randn(2, 5, 6, 7), torch.randn(2, 3, 5, 6, 7)
    expected = gradcam_fast.cam(activations, gradients, (9, 11), method=method)
    if rank == 3:
        volumes = activations[:, :, None], gradients[:, :, :, None]
        results = gradcam_fast.cam(*volumes, (1, 9, 11), method=method)
        assert torch.equal(
            results[0][:, :, 0], gradcam_fast.reference.cam(activations, gradients, (9, 11), method=method)[0]
        )
        torch.testing.assert_close(results[0][:, :, 0], expected[0], rtol=0, atol=SAME_INPUTS[torch.float32])
    else:
        row = activations[:, :, :1], gradients[:, :, :, :1]
        expected = gradcam_fast.cam(*row, (1, 11), method=method)
        results = gradcam_fast.cam(row[0][:, :, 0], row[1][:, :, :, 0], (11,), method=method)
        torch.testing.assert_close(results[0], expected[0][:, :, 0], rtol=0, atol=SAME_INPUTS[torch.float32])
    for extreme, expected_extreme in zip(results[1:], expected[1:], strict=True):
        torch.testing.assert_close(extreme, expected_extreme)


@pytest.mark.parametrize(
    ("rank", "images", "choices", "error", "parts"),
    [
        (1, (3, 2, 50, 50), {}, ValueError, ("(3, 2, 50, 50)", "(B,C,L)", "(C,L)")),
        (3, (2, 14, 16), {}, ValueError, ("(2, 14, 16)", "(B,C,D,H,W)", "(C,D,H,W)")),
        (1, (3, 2, 50), {"size": (8, 8)}, TypeError, ("size=(8, 8)", "(width)")),
        (3, (3, 2, 12, 14, 16), {"size": (8, 8)}, TypeError, ("size=(8, 8)", "three", "depth")),
        (3, (3, 2, 12, 14, 16), {"layer": "5"}, ValueError, ("'5'", "(3, 64)", "(3,C,d,h,w)")),
    ],
)
def test_arguments_with_the_wrong_number_of_axes_are_refused(rank, images, choices, error, parts):
    with pytest.raises(error) as refusal:
        explain(network(rank), torch.randn(images), **choices)
    assert_says(refusal, error, parts)
