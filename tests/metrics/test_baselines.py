"""The baselines are what their names say, in [0,1]."""

import numpy
import pytest
import torch
from torch import nn

from gradcam_fast import metrics


@pytest.mark.parametrize("make", [metrics.random_map, metrics.centre_map, metrics.edge_map])
def test_each_map_covers_zero_to_one(make):
    maps = make(torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0)))
    assert maps.shape == (3, 20, 24) and maps.dtype == torch.float32
    assert maps.flatten(1).amin(1).tolist() == pytest.approx([0] * 3) and maps.flatten(1).amax(1).tolist() == [1] * 3


def test_random_maps_follow_their_seed():
    images = torch.zeros(2, 3, 8, 8)
    assert torch.equal(metrics.random_map(images), metrics.random_map(images))
    assert not torch.equal(metrics.random_map(images), metrics.random_map(images, seed=1))


@pytest.mark.parametrize("grid", [None, 5])
def test_random_maps_are_what_numpy_draws_one_after_another(grid):
    images = torch.zeros(4, 3, 8, 10)
    drawn = torch.from_numpy(numpy.random.default_rng(3).random((4, grid or 8, grid or 10))).float()
    large = torch.nn.functional.interpolate(drawn[:, None], (8, 10), mode="bilinear")[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    maps = metrics.random_map(images, grid=grid, seed=3)
    torch.testing.assert_close(maps, (large - low) / (high - low))
    assert torch.equal(metrics.random_map(images[:2], grid=grid, seed=3, numbers=[3, 1]), maps[[3, 1]])


def test_the_saliency_map_is_the_gradients_magnitude():
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(2, 3, 4, 4)
    expected = model[1].weight[1].detach().reshape(3, 4, 4).abs().amax(0)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = metrics.saliency_map(model, images, 1)
    torch.testing.assert_close(found, expected.expand(2, 4, 4), atol=1e-6, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
