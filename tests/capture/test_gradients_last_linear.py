"""Behind a last linear layer the gradient of a class is a row of the weight: the same bits, and less to read.

Where anything else makes the logits, or a hook could notice, the whole graph is differentiated.
"""

import pytest
import torch
from support.networks import ConvNet
from torch import nn

import gradcam_fast


def whole_graph(model, images, target):
    """The same explanation by a callable target, through which the whole graph is differentiated."""

    def score(logits):
        classes = torch.as_tensor(target)
        picked = logits.gather(1, classes.reshape(len(logits), -1))
        return picked[:, 0] if classes.dim() == 1 else picked

    return gradcam_fast.explain(model, images, target=score, layer="features", method="layercam")


def assert_same(actual, expected):
    assert actual.valid.all()
    assert torch.equal(actual.heatmap, expected.heatmap)
    assert torch.equal(actual.raw_max, expected.raw_max)
    assert torch.equal(actual.score, expected.score)


def explained(model, images, target):
    return gradcam_fast.explain(model, images, target=target, layer="features", method="layercam")


TARGETS = [[0, 3, 1], [[0, 3], [2, 2], [4, 1]]]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_the_row_of_the_weight_gives_the_bits_of_the_whole_graph(images, target, bias, frozen):
    model = ConvNet()
    model.head[4] = nn.Linear(48, 5, bias=bias)
    model.requires_grad_(not frozen)
    assert_same(explained(model, images, target), whole_graph(model, images, target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_row_of_the_weight_gives_the_bits_of_the_whole_graph(images, target, dtype):
    model = ConvNet()
    with torch.autocast("cpu", dtype):
        assert_same(explained(model, images, target), whole_graph(model, images, target))


def test_rows_of_other_classes_are_not_read(images):
    """Zero times infinity is NaN, so the product with the whole weight makes every map invalid."""
    model = ConvNet()
    expected = explained(model, images, [0, 3, 1])
    with torch.no_grad():
        model.head[4].weight[2] = torch.inf
    assert not whole_graph(model, images, [0, 3, 1]).valid.any()
    assert torch.equal(explained(model, images, [0, 3, 1]).heatmap, expected.heatmap)


class Head(ConvNet):
    """A ConvNet whose logits are made by `change(head, maps)`."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        maps = self.features(images)
        return self.change(self.head, maps)


def hooked(head, maps):
    logits = head(maps)
    logits.register_hook(lambda gradient: gradient * torch.tensor([1.0, 2.0, -3.0])[:, None])
    return logits


def weight_from_the_maps(head, maps):
    flat = head[:4](maps)
    return flat @ (flat.T @ torch.ones(3, 5)).tanh()


def bias_from_the_maps(head, maps):
    flat = head[:4](maps)
    return torch.addmm(flat[:, :5].exp(), flat, head[4].weight.t())


def scaled(head, maps):
    flat = head[:4](maps)
    return torch.addmm(head[4].bias, flat, head[4].weight.t(), alpha=-2)


def maps_as_the_weight(head, maps):
    return torch.ones(3, 3) @ head(maps)


def maps_on_both_sides(head, maps):
    return maps.mean((2, 3)) @ maps[0].flatten(1)


@pytest.mark.parametrize(
    "change",
    [hooked, weight_from_the_maps, bias_from_the_maps, scaled, maps_as_the_weight, maps_on_both_sides],
)
@pytest.mark.parametrize("target", TARGETS)
def test_any_other_operation_that_makes_the_logits_is_differentiated(images, change, target):
    model = Head(change)
    assert_same(explained(model, images, target), whole_graph(model, images, target))
