"""pytorch-grad-cam, torchcam and captum, where they are right, give the maps that gradcam_fast gives.

Two classes of two images. Every peer's map is taken as it comes, with the peer's own ReLU, resize and scaling, and ours
is asked for with the same. Where peers are wrong is told in `test_peers_faults.py`.
"""

import pytest
import torch
from support.peers import (
    BEFORE_INPLACE_RELU,
    BEFORE_INPLACE_SUM,
    PYTORCH_GRAD_CAM,
    RECTIFIED,
    SIGNED,
    SIZE,
    OneConv,
    captum,
    distance,
    network,
    ours,
    pytorch_grad_cam,
    same,
    torchcam,
    two_images,
)
from support.tolerances import PEER

# A product of activation and gradient is zero where the ReLU was: to these it is all one what the ReLU did in place.
PRODUCTS = ["hirescam", "elementwise", "layercam"]


def at(layers, methods):
    return [(name, layer, method) for name, layer in layers for method in methods]


@pytest.mark.parametrize(
    ("name", "layer", "method"),
    [
        *at(RECTIFIED, PYTORCH_GRAD_CAM),
        *at(SIGNED, ["gradcam", "xgradcam", *PRODUCTS]),
        *at(BEFORE_INPLACE_RELU, PRODUCTS),
    ],
)
def test_pytorch_grad_cam_gives_our_map(name, layer, method):
    model, images = network(name), two_images()
    assert same(ours(model, layer, images, method), pytorch_grad_cam(model, layer, images, method))


@pytest.mark.parametrize(
    ("name", "layer", "method"),
    [*at(RECTIFIED + SIGNED, ["gradcam", "xgradcam", "layercam"]), *at(BEFORE_INPLACE_RELU, ["layercam"])],
)
def test_torchcam_gives_our_map_of_the_layers_size(name, layer, method):
    model, images = network(name), two_images()
    theirs = torchcam(model, layer, images, method)
    assert same(ours(model, layer, images, method, tuple(theirs.shape[1:])), theirs)


@pytest.mark.parametrize(("name", "layer"), RECTIFIED + SIGNED + BEFORE_INPLACE_RELU + BEFORE_INPLACE_SUM)
def test_captum_gives_our_map_with_its_negative_values_and_without(name, layer):
    model, images = network(name), two_images()
    raw = captum(model, layer, images)
    assert raw.amin() < 0 < raw.amax()
    assert same(ours(model, layer, images, size=tuple(raw.shape[1:]), relu=False, normalize="none"), raw)
    assert same(ours(model, layer, images, normalize="none"), captum(model, layer, images, SIZE))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("layer", "by_hand"), [("conv1", [11.25, 13.5, 20.25, 22.5]), ("relu1", [0, 4, 28, 32.5])])
def test_a_map_worked_out_by_hand_is_captums_and_ours(layer, by_hand, inplace):
    model, image = OneConv(inplace), torch.arange(16.0).reshape(1, 1, 4, 4)
    assert ours(model, layer, image, size=2, normalize="none", relu=False).flatten().tolist() == by_hand
    assert captum(model, layer, image).flatten().tolist() == by_hand


@pytest.mark.parametrize("layers", [["layer3", "layer4"], ["maxpool", "layer3", "layer4"]])
def test_our_map_of_several_layers_is_the_mean_of_pytorch_grad_cams_maps_of_each(layers):
    model, images = network("resnet18"), two_images()
    mean = torch.stack([pytorch_grad_cam(model, layer, images) for layer in layers]).mean(0)
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    assert same(ours(model, layers, images), (mean - low) / (high - low))


def test_our_map_of_several_layers_is_pytorch_grad_cams_where_the_resize_keeps_the_extremes():
    """An odd factor passes through the middles of all cells."""
    model, images = network("Threefold"), torch.randn(2, 3, 27, 45)
    for layers in ("1", "3", ["1", "3"]):
        assert same(ours(model, layers, images), pytorch_grad_cam(model, layers, images))


def test_our_map_of_several_layers_differs_from_pytorch_grad_cams_a_little_where_the_resize_cuts_the_extremes():
    """It scales each layer's map before the resize; we do so after it, and every layer weighs the same."""
    model, images = network("resnet18"), two_images()
    apart = distance(ours(model, ["layer3", "layer4"], images), pytorch_grad_cam(model, ["layer3", "layer4"], images))
    assert (apart > 10 * PEER).all() and (apart < 0.05).all()
