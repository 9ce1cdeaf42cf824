"""Computed, tied and reused weights are captured as in the full graph.

Here are parametrizations, shared parameters and parts that run several times; a single module that runs several times
is in test_hooks.py.
"""

import warnings

import pytest
import torch
from support.naive import full_graph, of_class
from support.networks import ConvNet
from support.unchanged import unchanged
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from gradcam_fast import cam, explain


def assert_as_in_the_full_graph(model, images, layer):
    torch.manual_seed(1)
    activations, gradients, logits = full_graph(model, layer, images, of_class(1))
    choices = {"size": activations.shape[-2:], "method": "hirescam", "normalize": "none", "relu": False}
    for _ in range(2):  # the second time the number of calls of each module is known
        torch.manual_seed(1)
        with unchanged(model):
            explanation = explain(model, images, target=1, layer=layer, **choices)
        assert torch.equal(explanation.logits, logits)
        assert torch.equal(explanation.heatmap, cam(activations, gradients, **choices)[0]) and explanation.valid.all()


def everywhere(change):
    """A ConvNet whose weights before the layer, at the layer and behind it are changed by `change`."""
    model = ConvNet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weight_norm and spectral_norm by a hook
        for name in ("features.0", "features.3", "head.4"):
            change(model.get_submodule(name))
    return model


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": lambda module: parametrizations.orthogonal(module) if isinstance(module, nn.Linear) else None,
    "weight_norm by a hook": nn.utils.weight_norm,
    "spectral_norm by a hook": nn.utils.spectral_norm,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.parametrize("layer", ["features.0", "features.3", "features"])
@pytest.mark.parametrize("how", COMPUTED)
def test_computed_weights_are_those_of_the_forward(how, layer, images):
    model = everywhere(COMPUTED[how])
    with torch.no_grad():  # a weight that a hook computes with a graph cannot be copied
        model(images)
    assert_as_in_the_full_graph(model, images, layer)


@pytest.mark.parametrize("layer", ["features.0", "features.3", None])
def test_the_power_iteration_of_a_training_forward_is_undone(layer, images):
    model = everywhere(parametrizations.spectral_norm).train()
    if layer:
        assert_as_in_the_full_graph(model, images, layer)
    with unchanged(model):
        explain(model, images, layer=layer)
    estimate = model.features[3].parametrizations.weight[0]._u.clone()
    model(images)
    assert not torch.equal(model.features[3].parametrizations.weight[0]._u, estimate)


class Tied(nn.Module):
    """Three convolutions with one weight, a last one that is its transpose; `first` is used again behind `second`."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.second.weight = self.third.weight = self.first.weight
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))

    def forward(self, images):
        maps = self.second(self.first(images).relu_()).relu_()
        maps = self.third(self.first(maps)) + F.conv_transpose2d(maps, self.first.weight, padding=1)
        return self.head(maps)


@pytest.mark.parametrize("layer", ["first", "second", "third"])
def test_a_weight_used_before_and_behind_the_layer_adds_nothing_to_its_gradient(layer, images):
    model = Tied().eval()
    assert_as_in_the_full_graph(model, images, layer)
    model(images).sum().backward()
    expected = model.first.weight.grad.clone()
    explain(model, images, layer=layer)
    assert torch.equal(model.first.weight.grad, expected)


class Pyramid(nn.Module):
    """A tower of layers that runs at three sizes, as in detectors."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.tower = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1))
        self.classes = nn.Conv2d(6, 5, 1)

    def forward(self, images):
        maps = self.stem(images)
        scores = []
        for size in range(3):
            maps = self.down(maps) if size else maps
            scores.append(self.classes(self.tower(maps)).mean((-2, -1)))
        return sum(scores)


@pytest.mark.parametrize("layer", ["stem", "down", "tower", "tower.0", "tower.1", "classes"])
def test_the_last_call_of_a_part_that_runs_at_several_sizes_counts(layer, images):
    model = Pyramid().eval()
    assert_as_in_the_full_graph(model, images, layer)


def test_the_layer_found_in_a_part_that_runs_several_times_has_the_map_of_the_named_layer(images):
    model = Pyramid().eval()
    with unchanged(model):
        explanation = explain(model, images, target=1, relu=False)
    # The last map that all three sizes are made of; the tower's last call is of one size.
    assert explanation.layer == "stem" and explanation.valid.all()
    assert torch.equal(explanation.heatmap, explain(model, images, target=1, layer="stem", relu=False).heatmap)
