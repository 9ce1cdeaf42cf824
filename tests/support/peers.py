"""gradcam_fast and other libraries behind one signature, and the networks on which they are compared.

A test that asks for a library that is not installed is skipped.
"""

import functools

import pytest
import torch
from torch import nn

import gradcam_fast
from support.networks import ConvNet
from support.tolerances import PEER

SIZE = (64, 96)
CLASSES = [0, 1]  # of the first image and of the second
LOUD = 1e4

PYTORCH_GRAD_CAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "elementwise": "GradCAMElementWise",
    "layercam": "LayerCAM",
}
TORCHCAM = {"gradcam": "GradCAM", "gradcam++": "GradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}

# Nothing behind these layers changes their output in place. The output is never negative, or has both signs.
RECTIFIED = [
    ("ConvNet", "features.4"),
    ("resnet18", "maxpool"),
    ("resnet18", "layer3"),
    ("resnet18", "layer4"),
    ("vgg11", "features.19"),
    ("densenet121", "features.transition3.relu"),
    ("mobilenet_v3_small", "features.3.block.0"),
]
SIGNED = [("densenet121", "features.denseblock3"), ("mobilenet_v3_small", "features.12")]

# Behind these layers comes an in-place ReLU (a module or a function), or an in-place sum and then such a ReLU.
BEFORE_INPLACE_RELU = [("vgg11", "features.18"), ("densenet121", "features")]
BEFORE_INPLACE_SUM = [("resnet18", "layer3.1.bn2")]


def two_images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def ours(model, layer, images, method="gradcam", size=None, **choices):
    """Maps (B,H,W) of one layer or a list: ReLU'd, resized to `size` or the images', scaled to [0,1], averaged."""
    classes = CLASSES[: len(images)]
    return gradcam_fast.explain(model, images, target=classes, layer=layer, method=method, size=size, **choices).heatmap


def pytorch_grad_cam(model, layer, images, method="gradcam"):
    """Maps (B,H,W) of one layer or a list: ReLU'd, scaled to [0,1], resized to the images', averaged, scaled again."""
    peer = pytest.importorskip("pytorch_grad_cam")
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    modules = [model.get_submodule(name) for name in ([layer] if isinstance(layer, str) else layer)]
    with getattr(peer, PYTORCH_GRAD_CAM[method])(model, modules) as cam:
        maps = cam(images.clone().requires_grad_(), [target(index) for index in CLASSES[: len(images)]])
    return torch.from_numpy(maps)


def torchcam(model, layer, images, method="gradcam"):
    """Maps (B,h,w) of the layer's own size: ReLU'd and scaled to [0,1]."""
    peer = pytest.importorskip("torchcam.methods")
    with getattr(peer, TORCHCAM[method])(model, layer) as cam:
        (maps,) = cam(CLASSES[: len(images)], model(images.clone().requires_grad_()))
    return maps


def captum(model, layer, images, size=None):
    """Grad-CAM maps of the layer's own size, or ReLU'd and then resized to `size`; not scaled."""
    peer = pytest.importorskip("captum.attr")
    maps = peer.LayerGradCam(model, model.get_submodule(layer)).attribute(
        images, CLASSES[: len(images)], relu_attributions=size is not None
    )
    if size is not None:
        maps = peer.LayerAttribution.interpolate(maps, size, "bilinear")
    return maps[:, 0].detach()


def distance(actual, expected):
    """The largest difference in each image, divided by the largest expected value. Expected maps must not be flat."""
    actual, expected = actual.double().flatten(1), expected.double().flatten(1)
    scale = expected.abs().amax(1)
    assert (expected.std(1) > 0.01 * scale).all()
    return (actual - expected).abs().amax(1) / scale


def same(actual, expected):
    return bool((distance(actual, expected) <= PEER).all())


def threefold():
    """Two convolutions, each of which shrinks the sides to a third."""
    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, 3), nn.ReLU(), *head)


OWN = {"ConvNet": ConvNet, "Threefold": threefold}


@functools.cache
def network(name, gain=LOUD):
    """A network of torchvision or one of `OWN` in eval mode, the weights of its last layer multiplied by `gain`.

    With a gain of LOUD the absolute epsilons of the other libraries are negligible. Batch-norm has run on one batch:
    without that, activations die out in a deep network of random weights. Frozen, so that the other libraries, which
    get images that require grad, spend no time on gradients of weights.
    """
    torch.manual_seed(0)
    if name in OWN:
        model = OWN[name]()
    else:
        model = getattr(pytest.importorskip("torchvision.models", exc_type=Exception), name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.requires_grad_(False).train()(torch.randn(4, 3, *SIZE))
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    last.weight *= gain
    return model.eval()


class OneConv(nn.Module):
    """A network whose maps can be calculated by hand: BasicModel_ConvNet_One_Conv of captum's tests."""

    def __init__(self, inplace):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.relu1 = nn.ReLU(inplace)
        self.fc1 = nn.Linear(8, 4)
        with torch.no_grad():
            self.conv1.weight.fill_(1)
            self.conv1.bias.copy_(torch.tensor([-50, -75]))
            self.fc1.weight.copy_(torch.tensor([1, 1, 1, 1, 1, -1, -1, -1]))
            self.fc1.bias.zero_()
        self.eval()

    def forward(self, images):
        return self.fc1(self.relu1(self.conv1(images)).flatten(1)).relu()
