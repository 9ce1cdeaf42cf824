"""pytorch-grad-cam, torchcam and captum give the maps of gradcam_fast where they are right.

Two classes of two images. Each library's map is taken as it comes, with its own ReLU, resize and scaling, and ours is
computed with the same. `test_peers_faults.py` has the cases in which the other libraries are wrong.
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

# A product of activation and gradient is zero wherever the ReLU is zero, so an in-place ReLU changes nothing for these.
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
def test_pytorch_grad_cam_gives_the_same_map(name, layer, method):
    model, images = network(name), two_images()
    assert same(ours(model, layer, images, method), pytorch_grad_cam(model, layer, images, method))


@pytest.mark.parametrize(
    ("name", "layer", "method"),
    [*at(RECTIFIED + SIGNED, ["gradcam", "xgradcam", "layercam"]), *at(BEFORE_INPLACE_RELU, ["layercam"])],
)
def test_torchcam_gives_the_same_map_at_the_layers_size(name, layer, method):
    model, images = network(name), two_images()
    theirs = torchcam(model, layer, images, method)
    assert same(ours(model, layer, images, method, tuple(theirs.shape[1:])), theirs)


@pytest.mark.parametrize(("name", "layer"), RECTIFIED + SIGNED + BEFORE_INPLACE_RELU + BEFORE_INPLACE_SUM)
def test_captum_gives_the_same_map_with_and_without_negative_values(name, layer):
    model, images = network(name), two_images()
    raw = captum(model, layer, images)
    assert raw.amin() < 0 < raw.amax()
    assert same(ours(model, layer, images, size=tuple(raw.shape[1:]), relu=False, normalize="none"), raw)
    assert same(ours(model, layer, images, normalize="none"), captum(model, layer, images, SIZE))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("layer", "by_hand"), [("conv1", [11.25, 13.5, 20.25, 22.5]), ("relu1", [0, 4, 28, 32.5])])
def test_captum_and_we_give_the_map_calculated_by_hand(layer, by_hand, inplace):
    model, image = OneConv(inplace), torch.arange(16.0).reshape(1, 1, 4, 4)
    assert ours(model, layer, image, size=2, normalize="none", relu=False).flatten().tolist() == by_hand
    assert captum(model, layer, image).flatten().tolist() == by_hand


@pytest.mark.parametrize("layers", [["layer3", "layer4"], ["maxpool", "layer3", "layer4"]])
def test_the_map_of_several_layers_is_the_mean_of_pytorch_grad_cams_maps_of_each(layers):
    model, images = network("resnet18"), two_images()
    mean = torch.stack([pytorch_grad_cam(model, layer, images) for layer in layers]).mean(0)
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    assert same(ours(model, layers, images), (mean - low) / (high - low))


def test_the_map_of_several_layers_equals_pytorch_grad_cams_where_the_resize_keeps_the_extremes():
    """A resize by an odd factor samples the middle of every cell."""
    model, images = network("Threefold"), torch.randn(2, 3, 27, 45)
    for layers in ("1", "3", ["1", "3"]):
        assert same(ours(model, layers, images), pytorch_grad_cam(model, layers, images))


def test_the_map_of_several_layers_differs_slightly_from_pytorch_grad_cams_where_the_resize_cuts_the_extremes():
    """pytorch-grad-cam scales each layer's map before the resize; we scale after it, so all layers weigh the same."""
    model, images = network("resnet18"), two_images()
    difference = distance(
        ours(model, ["layer3", "layer4"], images), pytorch_grad_cam(model, ["layer3", "layer4"], images)
    )
    assert (difference > 10 * PEER).all() and (difference < 0.05).all()
