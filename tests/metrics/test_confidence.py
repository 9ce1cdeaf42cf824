"""Drop, increase and win rate equal values worked out by hand, and torchcam's."""

import pytest
import torch
from torch import nn

from gradcam_fast import metrics


class Pixels(nn.Module):
    """A model whose logits are the pixels."""

    def forward(self, images):
        return images.flatten(1)


IMAGE = torch.tensor([[[[4.0, 1.0]]], [[[2.0, 8.0]]]])


def test_the_drop_is_the_share_of_the_score_that_is_lost():
    heat = torch.tensor([[[0.25, 1.0]], [[1.0, 0.0]]])
    drop = metrics.confidence_drop(Pixels(), IMAGE, heat, 0, score="logit")
    assert drop.tolist() == [0.75, 0.0]
    halves = metrics.confidence_drop(Pixels(), IMAGE, heat, 0, score="logit", baseline=torch.tensor(2.0))
    assert halves.tolist() == [1 - (0.25 * 4 + 0.75 * 2) / 4, 0.0]


def test_the_increase_counts_images_whose_score_rises():
    heat = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    assert metrics.confidence_increase(Pixels(), IMAGE, heat, 0).tolist() == [1.0, 0.0]


def test_the_win_rate_compares_two_maps_of_an_image():
    heat, rival = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert metrics.win_rate(Pixels(), IMAGE, heat, rival, 0).tolist() == [1.0, 0.0]
    assert metrics.win_rate(Pixels(), IMAGE, heat, heat, 0).tolist() == [0.5, 0.5]


def test_a_map_with_nan_has_no_result_and_its_neighbour_does_not_notice():
    heat = torch.tensor([[[torch.nan, 0.0]], [[0.5, 0.0]]])
    drop = metrics.confidence_drop(Pixels(), IMAGE, heat, 0, score="logit")
    assert drop[0].isnan() and drop[1] == 0.5
    assert metrics.confidence_increase(Pixels(), IMAGE, heat, 0)[0].isnan()
    assert metrics.win_rate(Pixels(), IMAGE, heat, heat.nan_to_num(), 0)[0].isnan()


def test_a_small_map_masks_the_image_at_its_own_size():
    image, small = torch.rand(1, 3, 8, 8), torch.rand(1, 4, 4)
    large = torch.nn.functional.interpolate(small[:, None], (8, 8), mode="bilinear")[:, 0]
    found = metrics.confidence_drop(nn.Flatten(), image, small, 5, score="logit")
    assert torch.equal(found, metrics.confidence_drop(nn.Flatten(), image, large, 5, score="logit"))
    expected = 1 - (image * large[:, None]).flatten()[5] / image.flatten()[5]
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.confidence_drop, metrics.confidence_increase])
def test_nothing_can_be_painted_into_an_image_that_is_only_dimmed(metric):
    with pytest.raises(ValueError, match="'inpainting' needs removed pixels, and a heatmap only dims them; use one of"):
        metric(Pixels(), IMAGE, torch.rand(2, 1, 2), 0, baseline="inpainting")


def test_rivals_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"images have shape .* and heatmaps \(3, 1, 2\)"):
        metrics.win_rate(Pixels(), IMAGE, torch.rand(2, 1, 2), torch.rand(3, 1, 2), 0)
    with pytest.raises(ValueError, match="other heatmaps"):
        metrics.win_rate(Pixels(), IMAGE, torch.rand(2, 1, 2), torch.rand(2, 2, 1, 2), 0)


def test_torchcam_finds_the_same_drop_and_increase():
    torchcam = pytest.importorskip("torchcam", reason="torchcam is not installed (extra peers)")
    from torchcam.metrics import ClassificationMetric

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    batch = torch.rand(5, 3, 16, 16)
    with torchcam.methods.GradCAM(model, "1") as extractor:
        judge = ClassificationMetric(extractor, lambda logits: logits.softmax(1))
        judge.update(batch)
        theirs = judge.summary()
        probabilities = model(batch).softmax(1)
        (maps,) = extractor(probabilities.argmax(1).tolist(), probabilities)
    assert float(metrics.confidence_drop(model, batch, maps).mean()) == pytest.approx(theirs["avg_drop"], abs=1e-5)
    assert float(metrics.confidence_increase(model, batch, maps).mean()) == pytest.approx(theirs["conf_increase"])
