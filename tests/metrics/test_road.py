"""ROAD removes exactly what it says, and scores what is left."""

import numpy
import pytest
import torch
from torch import nn

from gradcam_fast import metrics


class Means(nn.Module):
    """Two logits: the means of the left and of the right half."""

    def forward(self, images):
        half = images.shape[3] // 2
        return torch.stack([images[..., :half].mean((1, 2, 3)), images[..., half:].mean((1, 2, 3))], 1)


def test_the_map_of_what_matters_scores_better_than_its_opposite():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 2:8, 2:6] = 1
    heat = images.mean(1)
    good = metrics.road(Means(), images, heat, 0, percentages=[10, 30, 50], score="logit", noise=0)
    bad = metrics.road(Means(), images, 1 - heat, 0, percentages=[10, 30, 50], score="logit", noise=0)
    assert float(good.combined) > 0 > float(bad.combined)
    assert (good.most < good.least).all()


def test_exactly_the_stated_number_of_pixels_is_removed_from_a_sparse_map():
    seen = []

    class Watching(nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.flatten(1)[:, :2]

    images = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    heat = torch.zeros(1, 10, 10)
    heat[0, 0, 0] = 1
    result = metrics.road(Watching(), images, heat, 0, percentages=[10, 50], noise=0)
    changed = torch.cat(seen[1:]).ne(images).flatten(1).sum(1).tolist()
    assert result.most.shape == (1, 2)
    assert changed == [10, 50, 10, 50]


def test_the_cost_is_two_predictions_for_each_percentage():
    class Counting(nn.Module):
        images = 0

        def forward(self, images):
            Counting.images += len(images)
            return images.flatten(1)[:, :3]

    metrics.road(Counting(), torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8), 0)
    assert Counting.images == 1 + 2 * 5


@pytest.mark.parametrize("percentages", [[], [0], [100], [numpy.nan]])
def test_impossible_percentages_are_refused(percentages):
    with pytest.raises(ValueError, match="percentages="):
        metrics.road(Means(), torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8), 0, percentages=percentages)
