"""Stability is the largest change among all tried, and complexity equals values worked out by hand."""

import math

import pytest
import torch
from torch import nn

import gradcam_fast
from gradcam_fast import metrics


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def images(count=2):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_noise_of_no_size_changes_nothing_and_more_noise_changes_more():
    explainer = gradcam_fast.Explainer(network())
    small, large = (metrics.stability(explainer, images(), radius=radius, samples=3).noise for radius in (1e-6, 0.2))
    assert (small < 1e-3).all() and (large > 10 * small).all()


def test_the_largest_change_of_all_draws_counts():
    explainer = gradcam_fast.Explainer(network())
    one, many = (metrics.stability(explainer, images(), samples=samples).noise for samples in (1, 6))
    assert (many >= one).all() and (many > one).any()


def test_a_map_that_moves_with_the_image_is_stable_under_shifts():
    class Local(nn.Module):
        """The map is the image itself, so that it moves as the image does."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, batch):
            return self.conv(batch).mean((2, 3)).repeat(1, 2)

    batch = torch.zeros(1, 1, 12, 12)
    batch[..., 5:7, 4:8] = 1
    batch[..., 5, 5] = 3
    found = metrics.stability(gradcam_fast.Explainer(Local(), layer="conv"), batch, 0, samples=1)
    assert found.shift.tolist() == pytest.approx([0], abs=1e-6)
    assert found.noise > 0


def test_an_image_is_judged_alone_as_among_others():
    explainer = gradcam_fast.Explainer(network(), layer="1")
    together = metrics.stability(explainer, images(3), samples=2)
    alone = metrics.stability(explainer, images(3)[1:2], samples=2)
    torch.testing.assert_close(together.noise[1:2], alone.noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.shift[1:2], alone.shift, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"radius": 0}, "radius=0"),
        ({"samples": 0}, "samples=0"),
        ({"images": torch.rand(3, 8, 8)}, "images are no tensor"),
    ],
)
def test_what_cannot_work_is_refused(choices, says):
    arguments = {"images": images(), **choices}
    with pytest.raises(ValueError, match=says):
        metrics.stability(gradcam_fast.Explainer(network()), **arguments)


def test_one_pixel_is_simplest_and_equal_heat_most_complex():
    one, equal = torch.zeros(1, 5, 4), torch.ones(1, 5, 4)
    one[0, 2, 3] = 7
    found = metrics.complexity(torch.cat([one, equal]))
    assert found.entropy.tolist() == pytest.approx([0, math.log(20)], abs=1e-6)
    assert found.gini.tolist() == pytest.approx([1 - 1 / 20, 0], abs=1e-6)


def test_quantus_finds_the_same_sparseness_and_complexity():
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed (extra peers)")
    heat = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    batch = torch.rand(3, 1, 6, 6)
    found = metrics.complexity(heat)
    choices = {"disable_warnings": True, "abs": False, "normalise": False}
    arguments = {
        "model": nn.Flatten(),
        "x_batch": batch.numpy(),
        "y_batch": [0, 0, 0],
        "a_batch": heat[:, None].numpy(),
    }
    assert quantus.Sparseness(**choices)(**arguments) == pytest.approx(found.gini.tolist(), abs=1e-5)
    assert quantus.Complexity(**choices)(**arguments) == pytest.approx(found.entropy.tolist(), abs=1e-5)


def test_a_map_without_mass_has_no_complexity():
    heat = torch.zeros(2, 4, 4)
    heat[1, 0, 0] = torch.nan
    found = metrics.complexity(heat)
    assert found.entropy.isnan().all() and found.gini.isnan().all()
