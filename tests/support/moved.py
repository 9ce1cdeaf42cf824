"""pytorch-grad-cam and gradcam_fast's room of that name, called alike on the same network."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torch import nn

from gradcam_fast.compat import pytorch_grad_cam as ours
from support.peers import SIZE

GRADIENT_CLASSES = ["GradCAM", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM"]


def both(name, model, layers, images, targets=None, *, base=None, precise=False, made_with=(), **choices):
    """The maps of pytorch-grad-cam and ours of a class by its name.

    Args:
        layers: dotted names.
        targets: a list of (name of a target's class, arguments); each library gets its own.
        base: the name of the class that is its ``base_method``.
        precise: let pytorch-grad-cam combine the channels in float64, so that its own rounding does not count.
        made_with: further arguments that make the object.
    """
    theirs = pytest.importorskip("pytorch_grad_cam")
    maps = []
    for library in (theirs, ours):
        arguments = dict(made_with)
        if base is not None:
            arguments["base_method"] = getattr(library, base)
        kinds = library.utils.model_targets
        chosen = targets and [getattr(kinds, kind)(*values) for kind, *values in targets]
        # pytorch-grad-cam needs a graph through frozen weights, and shows progress on standard error.
        batch = images.clone().requires_grad_()
        with (
            contextlib.redirect_stderr(io.StringIO()),
            getattr(library, name)(model, modules(model, layers), **arguments) as cam,
        ):
            if precise and library is theirs:
                _combine_in_float64(cam)
            maps.append(cam(batch, chosen, **choices))
    return maps


def _combine_in_float64(cam):
    compute = cam.compute_cam_per_layer

    def compute_in_float64(*arguments):
        recorded = cam.activations_and_grads
        recorded.activations, recorded.gradients = (
            [maps.double() for maps in of_layers] for of_layers in (recorded.activations, recorded.gradients)
        )
        return compute(*arguments)

    cam.compute_cam_per_layer = compute_in_float64


def modules(model, names):
    return [model.get_submodule(name) for name in names]


def difference(actual, expected):
    """The largest difference of maps on [0,1], which must have the same shape and dtype and show something."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == np.float32
    assert (expected.reshape(len(expected), -1).std(axis=1) > 0.01).all()
    return np.abs(actual - expected).max()


def classes(*categories):
    return [("ClassifierOutputTarget", category) for category in categories]


class TinySegmenter(nn.Module):
    """Logits (B,4,H,W) of each pixel."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.eval()

    def forward(self, images):
        return nn.functional.interpolate(self.head(self.trunk(images)), images.shape[-2:], mode="bilinear")


def tiny_vit():
    """torchvision's ViT with a grid of 8 x 8 patches, and a head that is not all zeros."""
    vit = pytest.importorskip("torchvision.models.vision_transformer", exc_type=Exception)
    torch.manual_seed(0)
    model = vit.VisionTransformer(64, 8, 2, 2, 24, 48, num_classes=10).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


def pixels(batch=2, size=SIZE):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2))
