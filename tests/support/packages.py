"""Packages that several tests use: each is compiled once in a run, for all workers."""

import torch
from torch import nn

import gradcam_fast
from support import networks, red_or_blue
from support.shared import folder_filled_once

NAMES = ("ant", "bee", "cat", "dog, hound", "eel")
PREPROCESSING = {"size": (16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop": None}


class Weighted(networks.TwoInputs):
    """Takes images and one number per image; nothing counts its forwards, so that it can be traced."""

    def forward(self, images, shift):
        return self.head(self.features(images)) * shift.unsqueeze(1)


class ManyConvolutions(nn.Module):
    """Convolutions of many kinds; two of them squeeze and excite, so each has one position."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
            nn.Conv2d(8, 16, 1, groups=2), nn.GELU(),
            nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(),
        )  # fmt: skip
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.last, self.head = nn.Conv2d(16, 16, (3, 1), padding=(1, 0)), nn.Linear(16, 5)
        for weight in (parameter for parameter in self.parameters() if parameter.dim() == 4):
            nn.init.kaiming_normal_(weight)  # so that the images still matter at the end

    def forward(self, images):
        features = self.features(images)
        return self.head(self.last(features * self.gate(features).sigmoid()).relu().mean((2, 3)))


class Patches(networks.PatchNet):
    """A transformer with a class token, for any number of images."""

    def __init__(self):
        super().__init__(1)

    def embedded(self, images):
        patches = self.patch(images).flatten(2).mT
        return torch.cat([self.class_tokens.expand(images.shape[0], -1, -1), patches], 1)


def model(kind=networks.stateless):
    torch.manual_seed(0)
    return kind()


def _small(kind=networks.stateless, **choices):
    return gradcam_fast.Explainer(model(kind).eval()), torch.randn(2, 3, 16, 16), choices


PACKAGES = {
    "dynamic": lambda: _small(batch=(1, 8), names=NAMES, preprocessing=PREPROCESSING),
    "many convolutions": lambda: _small(ManyConvolutions, batch=(1, 8)),
    "patches": lambda: _small(Patches, batch=(1, 8)),
    "fixed": lambda: _small(batch=3, topk=2, self_contained=True),
    "classes come in": lambda: _small(batch=(1, 4), target="input", names=NAMES),
    "two inputs": lambda: (
        gradcam_fast.Explainer(model(Weighted), method="layercam", size=(20, 12)),
        {"images": torch.randn(3, 3, 16, 16), "shift": torch.rand(3)},
        {"batch": (2, 6), "target": [[1, 3]]},
    ),
    "red or blue": lambda: _red_or_blue(self_contained=True),
    "red or blue by the operator": lambda: _red_or_blue(),
    "red or blue, named": lambda: _red_or_blue(self_contained=True, topk=None, target="input"),
    "blue": lambda: _red_or_blue(self_contained=True, topk=None, target=1),
}


def _red_or_blue(**choices):
    network = red_or_blue.network(0.875, "auto", interpolation="bilinear")
    images = torch.rand(1, 3, red_or_blue.SIDE, red_or_blue.SIDE)
    said = {"names": network.class_names, "preprocessing": network.preprocess, "title": network.title}
    said["probabilities"] = network.probabilities
    return gradcam_fast.Explainer(network.model), images, {"batch": (1, 4), "topk": 2, **said, **choices}


def package(tmp_path_factory, name):
    """The path of one of `PACKAGES`."""

    def fill(folder):
        explainer, images, choices = PACKAGES[name]()
        gradcam_fast.export(explainer, images, folder / "model.pt2", **choices)

    return folder_filled_once(tmp_path_factory, f"package {name}", fill) / "model.pt2"


def explainer(name):
    """The eager explainer of one of `PACKAGES`."""
    return PACKAGES[name]()[0]
