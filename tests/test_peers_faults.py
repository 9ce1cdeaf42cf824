"""Known faults of pytorch-grad-cam and torchcam: one test per fault, with the true map beside theirs and ours.

The true maps are computed by plain autograd (`support/naive.py`) and the papers' formulas in float64, or by hand,
without gradcam_fast. When a test fails because a library fixed its fault, move the case to `test_peers.py`.
"""

import pytest
import torch
from support.naive import full_graph
from support.peers import (
    BEFORE_INPLACE_RELU,
    BEFORE_INPLACE_SUM,
    CLASSES,
    LOUD,
    SIGNED,
    OneConv,
    distance,
    network,
    ours,
    pytorch_grad_cam,
    same,
    torchcam,
    two_images,
)
from support.tolerances import PEER
from torch.nn import functional as F

RECTIFIED = [("ConvNet", "features.4"), ("resnet18", "layer4"), ("mobilenet_v3_small", "features.3.block.0")]

# A difference of maps on [0,1], in every image, that is no rounding but another picture.
WRONG = 0.1


def gradcam(a, g):
    """Selvaraju et al., ICCV 2017, equations 1 and 2."""
    return (g.mean((2, 3), keepdim=True) * a).sum(1)


def gradcam_plus_plus(a, g, above=-torch.inf):
    """Chattopadhay et al., WACV 2018, equations 7 and 19, with the alphas whose denominator is greater than `above`."""
    denominator = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3
    alpha = torch.where((g != 0) & (denominator > above), g**2 / denominator, 0)
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1)


def normalized_map(raw, size):
    """ReLU'd, upsampled, scaled to [0,1]."""
    maps = F.interpolate(raw.relu()[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def correct_map(model, layer, images, size, formula=gradcam):
    activations, gradients, _ = full_graph(model, layer, images, lambda out: out[[0, 1], CLASSES])
    return normalized_map(formula(activations.double(), gradients.double()), size)


@pytest.mark.parametrize("peer", [pytorch_grad_cam, torchcam])
@pytest.mark.parametrize(("name", "layer"), BEFORE_INPLACE_RELU + BEFORE_INPLACE_SUM)
def test_both_are_wrong_before_an_in_place_operation(peer, name, layer):
    model, images = network(name), two_images()
    theirs = peer(model, layer, images)
    size = tuple(theirs.shape[1:])
    correct = correct_map(model, layer, images, size)
    assert (distance(theirs, correct) > WRONG).all()
    assert same(ours(model, layer, images, size=size), correct)


@pytest.mark.parametrize(
    ("peer", "size", "inplace", "by_hand"),
    [
        (pytorch_grad_cam, (4, 4), False, [11.25, 13.5, 20.25, 22.5]),
        (torchcam, (2, 2), False, [11.25, 13.5, 20.25, 22.5]),
        # Activations behind the ReLU, weighted by gradients before it: 3/4 of one channel minus 1/2 of the other.
        (pytorch_grad_cam, (4, 4), True, [0, 3, 20.25, 22.5]),
        # The map of the ReLU.
        (torchcam, (2, 2), True, [0, 4, 28, 32.5]),
    ],
)
def test_both_give_a_known_wrong_map_of_a_convolution_before_an_inplace_relu(peer, size, inplace, by_hand):
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert same(peer(OneConv(inplace), "conv1", image), normalized_map(torch.tensor(by_hand).reshape(1, 2, 2), size))


@pytest.mark.parametrize(("name", "layer"), RECTIFIED)
def test_torchcams_gradcam_plus_plus_never_divides_by_the_denominator_of_alpha(name, layer):
    def undivided(a, g):
        return ((g**2 * g.relu()).sum((2, 3), keepdim=True) * a).sum(1)

    model, images = network(name), two_images()
    theirs = torchcam(model, layer, images, "gradcam++")
    size = tuple(theirs.shape[1:])
    correct = correct_map(model, layer, images, size, gradcam_plus_plus)
    assert (distance(theirs, correct) > WRONG).all()
    assert same(theirs, correct_map(model, layer, images, size, undivided))
    assert same(ours(model, layer, images, "gradcam++", size), correct)


@pytest.mark.parametrize(("name", "layer"), RECTIFIED)
def test_an_epsilon_changes_pytorch_grad_cams_gradcam_plus_plus_at_ordinary_gradients(name, layer):
    """1e-6 is added to 2 g^2, while gradients are of the order of 1e-3."""
    model, images = network(name, gain=1), two_images()
    theirs = pytorch_grad_cam(model, layer, images, "gradcam++")
    correct = correct_map(model, layer, images, theirs.shape[1:], gradcam_plus_plus)
    assert (distance(theirs, correct) > 100 * PEER).all()
    assert same(ours(model, layer, images, "gradcam++"), correct)


@pytest.mark.parametrize(("peer", "gain"), [(torchcam, 1e-8), (pytorch_grad_cam, 1e-14)])
def test_an_epsilon_dims_the_maps_of_small_gradients(peer, gain):
    model, images = network("resnet18", gain), two_images()
    theirs = peer(model, "layer4", images)
    size = tuple(theirs.shape[1:])
    correct = correct_map(model, "layer4", images, size)
    assert (theirs.amax((1, 2)) < 0.2).all() and same(theirs / theirs.amax((1, 2), keepdim=True), correct)
    assert same(ours(model, "layer4", images, size=size), correct)
    assert same(peer(network("resnet18", LOUD), "layer4", images), correct)


@pytest.mark.parametrize(("name", "layer"), SIGNED)
def test_pytorch_grad_cam_lets_positive_gradients_weigh_negatively_in_gradcam_plus_plus(name, layer):
    """Where a channel's activations sum to less than zero, alpha's denominator can be negative; we drop those terms."""
    model, images = network(name), two_images()
    theirs = pytorch_grad_cam(model, layer, images, "gradcam++")
    without_negative_terms = ours(model, layer, images, "gradcam++")
    size = theirs.shape[1:]
    assert same(theirs, correct_map(model, layer, images, size, gradcam_plus_plus))
    assert same(
        without_negative_terms, correct_map(model, layer, images, size, lambda a, g: gradcam_plus_plus(a, g, above=0))
    )
    assert (distance(theirs, without_negative_terms) > WRONG).all()
