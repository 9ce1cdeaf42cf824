"""The gradient of a class begins behind a last linear layer, with that class's row of the weight: same bits, less read.

Where the logits are anything else, and where it could show, the whole graph is walked.
"""

import pytest
import torch
from support.networks import ConvNet
from torch import nn

import gradcam_fast


def whole_graph(model, images, target):
    """The same through a score that is a callable's, of which nothing is known."""

    def score(logits):
        classes = torch.as_tensor(target)
        one = logits.gather(1, classes.reshape(len(logits), -1))
        return one[:, 0] if classes.dim() == 1 else one

    return gradcam_fast.explain(model, images, target=score, layer="features", method="layercam")


def assert_same(found, expected):
    assert found.valid.all()
    assert torch.equal(found.heatmap, expected.heatmap)
    assert torch.equal(found.raw_max, expected.raw_max)
    assert torch.equal(found.score, expected.score)


def explained(model, images, target):
    return gradcam_fast.explain(model, images, target=target, layer="features", method="layercam")


TARGETS = [[0, 3, 1], [[0, 3], [2, 2], [4, 1]]]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_the_map_has_the_bits_of_the_whole_graphs(images, target, bias, frozen):
    model = ConvNet()
    model.head[4] = nn.Linear(48, 5, bias=bias)
    model.requires_grad_(not frozen)
    assert_same(explained(model, images, target), whole_graph(model, images, target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_too(images, target, dtype):
    model = ConvNet()
    with torch.autocast("cpu", dtype):
        assert_same(explained(model, images, target), whole_graph(model, images, target))


def test_the_rows_of_other_classes_are_not_read(images):
    """Zero times infinity is NaN: the whole product spoils every map."""
    model = ConvNet()
    expected = explained(model, images, [0, 3, 1])
    with torch.no_grad():
        model.head[4].weight[2] = torch.inf
    assert not whole_graph(model, images, [0, 3, 1]).valid.any()
    assert torch.equal(explained(model, images, [0, 3, 1]).heatmap, expected.heatmap)


class Head(ConvNet):
    """ConvNet with something else on top of its logits."""

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
def test_whatever_else_makes_the_logits_is_walked_whole(images, change, target):
    model = Head(change)
    assert_same(explained(model, images, target), whole_graph(model, images, target))
