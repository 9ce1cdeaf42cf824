"""Where the maps are not pytorch-grad-cam's: each deviation with what it does, what we do, and why ours is right.

docs/from-pytorch-grad-cam.md lists them for users.
"""

import copy

import numpy as np
import pytest
import torch
from support.moved import both, classes, difference, pixels
from support.naive import full_graph
from support.networks import ConvNet
from support.peers import BEFORE_INPLACE_RELU, network
from support.tolerances import COMPAT
from torch import nn
from torch.nn import functional as F

from gradcam_fast.compat import pytorch_grad_cam
from gradcam_fast.compat.pytorch_grad_cam import EigenCAM, EigenGradCAM, GradCAM, GradCAMPlusPlus, ScoreCAM
from gradcam_fast.compat.pytorch_grad_cam.utils.image import scale_cam_image
from gradcam_fast.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from gradcam_fast.compat.pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

peer = pytest.importorskip("pytorch_grad_cam")
TWO = classes(3, 1)
WRONG = 0.05  # another picture, and no rounding


def captured(model, layer, images):
    """Activations and gradients of the two classes by plain autograd, in float64."""
    activations, gradients, _ = full_graph(model, layer, images, lambda output: output[[0, 1], [3, 1]])
    return activations.double().numpy(), gradients.double().numpy()


def scaled(raw, images):
    return scale_cam_image(scale_cam_image(np.maximum(raw, 0), images.shape[:1:-1]))


def test_grad_cam_plus_plus_has_no_epsilon():
    """There 1e-6 is added to 2 g^2, which counts where gradients are of the order of 1e-3."""
    model, images = network("resnet18", gain=1), pixels()
    theirs, ours = both("GradCAMPlusPlus", model, ["layer4"], images, TWO)
    a, g = captured(model, "layer4", images)
    alpha = np.divide(g**2, 2 * g**2 + a.sum((2, 3), keepdims=True) * g**3, out=np.zeros_like(g), where=g != 0)
    weights = (alpha * np.maximum(g, 0)).sum((2, 3), keepdims=True)
    assert difference(ours, scaled((weights * a).sum(1), images)) <= COMPAT < 1e-4 < difference(ours, theirs)


def test_xgrad_cam_has_no_epsilon_and_sums_in_float64():
    """There 1e-7 is added to the sum of a channel, which counts where activations of both signs cancel."""
    model, images = network("densenet121", gain=1), pixels()
    theirs, ours = both("XGradCAM", model, ["features.denseblock3"], images, TWO)
    a, g = captured(model, "features.denseblock3", images)
    weights = (g * a).sum((2, 3), keepdims=True) / a.sum((2, 3), keepdims=True)
    exact = scaled((weights * a).sum(1), images)
    assert difference(ours, exact) <= COMPAT < 1e-5 < difference(theirs, exact)


class TinyVolumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 6, 3, 2, padding=1)
        self.fc = nn.Linear(6 * 8, 4)

    def forward(self, volumes):
        return self.fc(F.adaptive_avg_pool3d(self.conv(volumes).sigmoid(), 2).flatten(1))


def test_volumes_are_resized_linearly():
    """There splines of the third order overshoot; their map of a layer is the same before the resize."""
    torch.manual_seed(0)
    model, volumes = TinyVolumes().eval(), torch.randn(2, 1, 6, 8, 10)
    theirs, ours = both("GradCAM", model, ["conv"], volumes, TWO)
    a, g, _ = full_graph(model, "conv", volumes, lambda output: output[[0, 1], [3, 1]])
    raw = (g.mean((2, 3, 4), keepdim=True) * a).sum(1).relu()
    low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
    resized = F.interpolate(((raw - low) / (high - low))[:, None], volumes.shape[2:], mode="trilinear")[:, 0]
    assert difference(ours, scale_cam_image(resized.numpy())) <= COMPAT < WRONG < difference(ours, theirs)


def test_the_sign_of_a_principal_component_is_fixed():
    """There it is the one that LAPACK happens to return; ours agrees with the mean activation."""
    model, images = network("resnet18", gain=1), pixels(4)
    a, _ = full_graph(model, "layer4", images, lambda output: output[:, 0])[:2]
    theirs = peer.utils.svd_on_activations.get_2d_projection(a.numpy())
    ours = get_2d_projection(a.numpy())
    largest = np.abs(theirs).max((1, 2), keepdims=True)
    same, turned = (np.abs(ours - sign * theirs).max((1, 2)) <= 1e-5 * largest[:, 0, 0] for sign in (1, -1))
    assert (same | turned).all()
    mean = a.numpy().mean(1)
    agreement = (ours * (mean - mean.mean((1, 2), keepdims=True))).sum((1, 2))
    assert (agreement > 0).all()
    maps = EigenCAM(model, [model.layer4])(images)
    assert difference(maps, scaled(ours, images)) <= COMPAT


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM"])
def test_eigen_maps_are_theirs_up_to_the_sign(name):
    model, images = network("resnet18", gain=1), pixels(4)
    theirs, ours = both(name, model, ["layer4"], images, classes(3, 1, 3, 1))
    a, g, _ = full_graph(model, "layer4", images, lambda output: output[[0, 1, 2, 3], [3, 1, 3, 1]])
    values = a.numpy() if name == "EigenCAM" else (a * g).numpy()
    turned = scaled(-get_2d_projection(values, a.numpy().mean(1)), images)
    for image in range(4):
        assert min(np.abs(theirs[image] - maps[image]).max() for maps in (ours, turned)) <= 1e-5


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "HiResCAM"])
def test_eigen_smooth_is_theirs_up_to_the_sign(name):
    model, images = network("resnet18", gain=1), pixels(4)
    targets = classes(3, 1, 3, 1)
    theirs, ours = both(name, model, ["layer4"], images, targets, eigen_smooth=True)
    a, g, _ = full_graph(model, "layer4", images, lambda output: output[[0, 1, 2, 3], [3, 1, 3, 1]])
    weights = {"GradCAM": g.mean((2, 3), keepdim=True), "LayerCAM": g.relu(), "HiResCAM": g}[name]
    turned = scaled(-get_2d_projection((weights * a).numpy()), images)
    for image in range(4):
        assert min(np.abs(theirs[image] - maps[image]).max() for maps in (ours, turned)) <= 1e-5


def test_a_short_list_of_targets_is_an_error():
    """There the images without a target get maps of nothing."""
    model, images = network("ConvNet", gain=1), pixels(3, (16, 16))
    targets = [ClassifierOutputTarget(0)]
    theirs = peer.GradCAM(model, [model.features[4]])(images.clone().requires_grad_(), targets)
    assert theirs.shape == (3, 16, 16) and not theirs[1:].any()
    with pytest.raises(ValueError, match="targets has 1 targets for 3 images; give one for each image"):
        GradCAM(model, [model.features[4]])(images, targets)
    with pytest.raises(ValueError, match="targets has 0 targets"):
        GradCAM(model, [model.features[4]])(images, [])


def test_targets_beyond_the_batch_are_left_out_as_there():
    model, images = network("ConvNet", gain=1), pixels(2, (16, 16))
    theirs, ours = both("GradCAM", model, ["features.4"], images, classes(3, 2, 1, 0))
    assert difference(ours, theirs) <= COMPAT


def test_an_index_error_leaves_the_with_block(capsys):
    """There it is printed and swallowed, and the code behind the block goes on without a map."""
    model = network("ConvNet", gain=1)
    with peer.GradCAM(model, [model.features[4]]):
        raise IndexError("list index out of range")
    assert "list index out of range" in capsys.readouterr().out
    with pytest.raises(IndexError, match="out of range"), GradCAM(model, [model.features[4]]):
        raise IndexError("list index out of range")


@pytest.mark.parametrize(("architecture", "layer"), BEFORE_INPLACE_RELU)
def test_an_in_place_relu_behind_the_layer_changes_nothing(architecture, layer):
    """There activations are those behind the ReLU and gradients those before it, on the CPU: of a convolution before an
    in-place ReLU, and of DenseNet's `features`."""
    model, images = network(architecture, gain=1), pixels()
    theirs, ours = both("GradCAM", model, [layer], images, TWO)
    a, g = captured(model, layer, images)
    exact = scaled((g.mean((2, 3), keepdims=True) * a).sum(1), images)
    assert difference(ours, exact) <= 1e-5 < WRONG < np.abs(ours - theirs).max()


def test_gradients_of_weights_are_kept():
    """There each call sets them to None."""
    model, images = copy.deepcopy(network("ConvNet", gain=1)).requires_grad_(), pixels(2, (16, 16))
    model(images).sum().backward()
    before = [weights.grad for weights in model.parameters()]
    for name in ("GradCAM", "ShapleyCAM", "FullGrad", "EigenCAM", "AblationCAM"):
        getattr(pytorch_grad_cam, name)(model, [model.features[4]])(images)
    assert all(weights.grad is gradient for weights, gradient in zip(model.parameters(), before, strict=True))


def test_signed_layers_are_ablated_to_zero():
    """There a channel becomes the layer's minimum less ten million, wherever a value is negative."""
    model, images = network("ConvNet", gain=1), pixels(2, (16, 24))
    theirs, ours = both("AblationCAM", model, ["features.0"], images, TWO, made_with={"batch_size": 1})
    maps = model.features[0](images)
    with torch.no_grad():
        scores = model(images)[[0, 1], [3, 1]]
        weights = torch.zeros(2, maps.shape[1])
        for channel in range(maps.shape[1]):
            without = maps.clone()
            without[:, channel] = 0
            weights[:, channel] = 1 - model.head(model.features[1:](without))[[0, 1], [3, 1]] / scores
    raw = (weights[:, :, None, None] * maps).sum(1)
    exact = scaled(raw.detach().numpy(), images)
    assert difference(ours, exact) <= 1e-5 and np.abs(ours - theirs).max() > WRONG


def test_constant_channels_are_scored_together():
    """There each is run by itself; the maps are the same."""
    model, images = copy.deepcopy(network("ConvNet", gain=1)), pixels(1, (16, 24))
    with torch.no_grad():
        model.features[3].weight[:6] = 0
    cam = ScoreCAM(model, [model.features[4]])
    runs = len(model.runs)
    ours = cam(images, [ClassifierOutputTarget(3)])
    assert sum(model.runs[runs:]) == 1 + 1 + 6
    theirs, _ = both("ScoreCAM", model, ["features.4"], images, classes(3))
    assert difference(ours, theirs) <= COMPAT


def test_grad_cam_plus_plus_drops_terms_of_a_negative_denominator():
    """There positive gradients weigh negatively where a channel's activations sum to less than zero."""
    activations, gradients = -np.ones((1, 1, 1, 2), np.float32), np.full((1, 1, 1, 2), 3, np.float32)
    theirs = peer.GradCAMPlusPlus.get_cam_weights(None, None, None, None, activations, gradients)
    ours = GradCAMPlusPlus.get_cam_weights(None, None, None, None, activations, gradients)
    assert theirs[0, 0] < 0 == ours[0, 0]


def test_the_model_itself_is_not_differentiated_beyond_the_layer():
    """There the whole model is; a trunk without gradients is then an error."""

    class Frozen(ConvNet):
        def forward(self, images):
            with torch.no_grad():
                maps = self.features(images)
            return self.head(maps)

    torch.manual_seed(0)
    model, images = Frozen(), pixels(2, (16, 16))
    assert GradCAM(model, [model.features[4]])(images).any()
    assert EigenGradCAM(model, [model.features[4]])(images).any()
