"""Whether logits are an affine function of a layer's activations: told by the graph, and never wrongly."""

import pytest
import torch
from support.networks import ConvNet, conv_relu, pooled_head
from torch import nn
from torch.nn import functional as F

from gradcam_fast._capture.affine import is_affine


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, maps):
        return maps + self.inner(maps)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, maps):
        return self.function(maps)


def norm(training=False):
    layer = nn.BatchNorm2d(8)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer.train(training)


AFFINE = {
    "pooling and linear": nn.Identity(),
    "convolution": nn.Conv2d(8, 8, 3),
    "batch-norm in eval mode": norm(),
    "average pooling": nn.AvgPool2d(2),
    "sum of two branches": Residual(nn.Conv2d(8, 8, 1)),
    "concatenation": Function(lambda maps: torch.cat([maps[:, 4:], maps[:, :4]], 1)),
    "slices and transposes": Function(lambda maps: maps[:, :, 1:].transpose(2, 3)),
    "dropout in eval mode": nn.Dropout(0.5).eval(),
}
CURVED = {
    "ReLU": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "maximum": nn.MaxPool2d(2),
    "normalisation": nn.GroupNorm(2, 8),
    "batch-norm in training mode": norm(training=True),
    "dropout in training mode": nn.Dropout(0.5).train(),
    "product of two branches": Function(lambda maps: maps * maps.mean((2, 3), keepdim=True)),
    "mask that the graph does not show": Function(lambda maps: maps * (maps > 0)),
    "term that the graph does not show": Function(lambda maps: maps + maps.detach().square()),
    "weights made of the activations": Function(lambda maps: F.linear(maps, maps.mean((0, 1)))),
}


def logits_and_activations(middle, frozen=False):
    """Logits behind `middle`, pooling and a linear layer, and the activations (2,8,16,16) in front of these."""
    head = nn.Sequential(middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    activations = torch.randn(2, 8, 16, 16, requires_grad=True)
    head(activations)
    head.requires_grad_(not frozen)
    return head, head(activations.clone()), activations


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_head_is_told(name, frozen):
    head, logits, activations = logits_and_activations(AFFINE[name], frozen)
    assert is_affine(logits, activations)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), activations)
    other = torch.randn_like(activations, requires_grad=True)
    assert torch.allclose(torch.autograd.grad(head(other)[:, 0].sum(), other)[0], gradient, atol=1e-6)


@pytest.mark.parametrize("name", CURVED)
def test_a_head_that_is_not_affine_is_never_taken_for_one(name):
    _, logits, activations = logits_and_activations(CURVED[name])
    assert not is_affine(logits, activations)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_usual_head_is_affine_with_frozen_parameters_too(frozen):
    head = pooled_head(8).requires_grad_(not frozen)
    activations = conv_relu()(torch.randn(2, 3, 16, 16)).detach().requires_grad_()
    assert is_affine(head(activations.clone()), activations)


def test_what_does_not_depend_on_the_activations_is_not():
    activations = torch.randn(2, 8, 4, 4, requires_grad=True)
    assert not is_affine(torch.randn(2, 5), activations)
    assert not is_affine(torch.randn(2, 5, requires_grad=True) * 2, activations)
    assert not is_affine([torch.randn(2, 5)], activations)


def test_the_layers_of_a_network(images):
    model = ConvNet()
    activations = model.features(images).detach().requires_grad_()
    assert is_affine(model.head(activations.clone()), activations)
    earlier = model.features[:2](images).detach().requires_grad_()
    assert not is_affine(model.head(model.features[2:](earlier.clone())), earlier)
