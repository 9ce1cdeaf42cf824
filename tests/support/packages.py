"""Packages that several tests use: each is compiled once in a run, for all workers."""

import torch

import gradcam_fast
from support import networks, red_or_blue
from support.shared import folder_filled_once

NAMES = ("ant", "bee", "cat", "dog, hound", "eel")
PREPROCESSING = {"size": (16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop": None}


class Weighted(networks.TwoInputs):
    """Takes images and one number per image; nothing counts its forwards, so that it can be traced."""

    def forward(self, images, shift):
        return self.head(self.features(images)) * shift.unsqueeze(1)


def model(kind=networks.stateless):
    torch.manual_seed(0)
    return kind()


def _small(**choices):
    return gradcam_fast.Explainer(model()), torch.randn(2, 3, 16, 16), choices


PACKAGES = {
    "dynamic": lambda: _small(batch=(1, 8), names=NAMES, preprocessing=PREPROCESSING),
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
