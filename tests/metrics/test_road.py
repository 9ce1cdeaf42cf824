"""ROAD removes exactly what it says, and imputes as a direct solution of the paper's equations does."""

import numpy
import pytest
import torch
from torch import nn

from gradcam_fast import metrics

NEIGHBOURS = [(i, j, 1 / 6 if 0 in (i, j) else 1 / 12) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def solved_directly(image, removed):
    """The paper's equations in float64, by a dense solution."""
    height, width = removed.shape
    places = {tuple(place): number for number, place in enumerate(removed.nonzero().tolist())}
    left = torch.zeros(len(places), len(places), dtype=torch.float64)
    right = torch.zeros(len(places), len(image), dtype=torch.float64)
    for (row, column), number in places.items():
        for i, j, weight in NEIGHBOURS:
            other = (row + i, column + j)
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            left[number, number] += weight
            if other in places:
                left[number, places[other]] -= weight
            else:
                right[number] += weight * image[:, other[0], other[1]].double()
    solution = torch.linalg.solve(left, right)
    filled = image.double().clone()
    for (row, column), number in places.items():
        filled[:, row, column] = solution[number]
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_equals_a_direct_solution(share):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 24, 20, generator=generator)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 1, 4, 4, generator=generator), (24, 20), mode="bilinear")[
        :, 0
    ]
    removed = torch.stack([heat >= heat.quantile(1 - share) for heat in smooth])
    expected = torch.stack([solved_directly(*pair) for pair in zip(images, removed, strict=True)])
    torch.testing.assert_close(metrics.impute(images, removed).double(), expected, atol=3e-4, rtol=0)


def test_imputation_equals_a_direct_solution_on_a_large_region():
    images = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    removed = torch.zeros(1, 48, 48, dtype=torch.bool)
    removed[:, 1:, :] = True  # far from the only row that is left
    found = metrics.impute(images, removed)
    torch.testing.assert_close(found[0].double(), solved_directly(images[0], removed[0]), atol=3e-4, rtol=0)


def test_an_image_is_imputed_alone_as_among_others():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    removed = (
        torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
        < torch.tensor([0.2, 0.5, 0.95])[:, None, None]
    )
    together = metrics.impute(images, removed)
    for i in range(3):
        torch.testing.assert_close(
            metrics.impute(images[i : i + 1], removed[i : i + 1])[0], together[i], atol=1e-6, rtol=0
        )
    assert torch.equal(together.masked_fill(removed[:, None], 0), images.masked_fill(removed[:, None], 0))


def test_an_image_without_any_pixel_left_becomes_zero():
    images = torch.rand(2, 3, 8, 8)
    removed = torch.stack([torch.ones(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)])
    found = metrics.impute(images, removed)
    assert not found[0].any() and torch.equal(found[1], images[1])


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


def test_pytorch_grad_cam_removes_every_pixel_of_a_sparse_map():
    pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed (extra peers)")
    from pytorch_grad_cam.metrics.perturbation_confidence import RemoveMostRelevantFirst

    heat = torch.zeros(10, 10)
    heat[0, 0] = 1
    removed = []
    RemoveMostRelevantFirst(80, lambda image, kept: removed.append(int((kept == 0).sum())))(torch.rand(1, 10, 10), heat)
    assert removed == [100]  # of the 20 that 80 asks for


def test_pytorch_grad_cams_imputer_without_noise_fills_in_the_same_values():
    pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed (extra peers)")
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(16, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    theirs = NoisyLinearImputer(noise=0)(image, (~removed).float())
    torch.testing.assert_close(metrics.impute(image[None], removed[None])[0], theirs.float(), atol=3e-4, rtol=0)


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
