"""Negative values of a map, which speak against the class: `relu=False` keeps them; otherwise they become 0."""

import pytest
import torch
from support.tolerances import RECIPE_PARITY
from torch import nn

from gradcam_fast import explain
from gradcam_fast.ops.arguments import METHODS


def network(sign):
    """Five positive channels: class 0 weighs all by `sign`, class 1 the first by 1 and the others by -1."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2, bias=False)
    )
    model[4].weight.data = torch.tensor([[sign] * 5, [1.0, -1.0, -1.0, -1.0, -1.0]])
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_map_without_positive_values_is_zeros_and_not_valid(method):
    explanation = explain(network(-1.0), torch.randn(2, 3, 12, 12), layer="1", target=0, method=method)
    assert not explanation.valid.any() and not explanation.heatmap.any()
    assert not explanation.raw_min.any() and not explanation.raw_max.any()


def test_without_relu_opposite_weights_give_opposite_maps():
    images, by_sign = torch.randn(2, 3, 12, 12), {}
    for sign in (1.0, -1.0):
        model = network(sign)
        model[0].load_state_dict({"weight": torch.linspace(-1, 1, 135).reshape(5, 3, 3, 3), "bias": torch.zeros(5)})
        by_sign[sign] = explain(model, images, layer="1", target=0, relu=False, normalize="none")
    assert by_sign[1.0].valid.all() and by_sign[-1.0].valid.all()
    assert torch.equal(by_sign[-1.0].heatmap, -by_sign[1.0].heatmap)
    assert torch.equal(by_sign[-1.0].raw_min, -by_sign[1.0].raw_max)


def test_a_signed_map_divided_by_its_magnitude_keeps_its_zero():
    model, images = network(1.0), torch.randn(2, 3, 12, 12)
    options = {"layer": "1", "target": 1, "relu": False}
    signed = explain(model, images, normalize="none", **options)
    symmetric = signed.heatmap / torch.maximum(signed.raw_max, -signed.raw_min)[..., None, None]
    assert symmetric.abs().amax((1, 2)).tolist() == pytest.approx([1, 1])
    assert torch.equal(symmetric > 0, signed.heatmap > 0)
    # The map on [0,1] is the same one on another scale.
    low, high = (extreme[:, None, None] for extreme in (signed.raw_min, signed.raw_max))
    scaled = explain(model, images, **options).heatmap
    torch.testing.assert_close(scaled * (high - low) + low, signed.heatmap, rtol=0, atol=RECIPE_PARITY)
