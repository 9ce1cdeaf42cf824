"""What speaks against a class: kept by `relu=False`, cut otherwise, and never mistaken for a map.

Knows nothing of layers or of real networks.
"""

import pytest
import torch
from support.tolerances import RECIPE_PARITY
from torch import nn

from gradcam_fast import explain
from gradcam_fast.ops.arguments import METHODS


def network(sign):
    """Five positive channels; class 0 counts all of them with `sign`, class 1 the first for and the rest against."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2, bias=False)
    )
    model[4].weight.data = torch.tensor([[sign] * 5, [1.0, -1.0, -1.0, -1.0, -1.0]])
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_map_of_nothing_but_counter_evidence_is_zeros_and_not_valid(method):
    found = explain(network(-1.0), torch.randn(2, 3, 12, 12), layer="1", target=0, method=method)
    assert not found.valid.any() and not found.heatmap.any()
    assert not found.raw_min.any() and not found.raw_max.any()


def test_without_relu_it_is_the_negative_of_the_evidence():
    images, found = torch.randn(2, 3, 12, 12), {}
    for sign in (1.0, -1.0):
        model = network(sign)
        model[0].load_state_dict({"weight": torch.linspace(-1, 1, 135).reshape(5, 3, 3, 3), "bias": torch.zeros(5)})
        found[sign] = explain(model, images, layer="1", target=0, relu=False, normalize="none")
    assert found[1.0].valid.all() and found[-1.0].valid.all()
    assert torch.equal(found[-1.0].heatmap, -found[1.0].heatmap)
    assert torch.equal(found[-1.0].raw_min, -found[1.0].raw_max)


def test_symmetric_maps_keep_zero_where_it_is():
    model, images = network(1.0), torch.randn(2, 3, 12, 12)
    choices = {"layer": "1", "target": 1, "relu": False}
    signed = explain(model, images, normalize="none", **choices)
    symmetric = signed.heatmap / torch.maximum(signed.raw_max, -signed.raw_min)[..., None, None]
    assert symmetric.abs().amax((1, 2)).tolist() == pytest.approx([1, 1])
    assert torch.equal(symmetric > 0, signed.heatmap > 0)
    # The same map as the one between 0 and 1, on another scale.
    low, high = (each[:, None, None] for each in (signed.raw_min, signed.raw_max))
    scaled = explain(model, images, **choices).heatmap
    torch.testing.assert_close(scaled * (high - low) + low, signed.heatmap, rtol=0, atol=RECIPE_PARITY)
