"""Insertion and deletion equal curves worked out by hand, torchcam's, and the values measured for the demo's photos."""

import pytest
import torch
from support.refusals import assert_says
from torch import nn

import gradcam_fast
from gradcam_fast import metrics
from gradcam_fast.metrics.perturbation import ranks


class Linear(nn.Module):
    """Two logits, each a weighted sum of the pixels."""

    def __init__(self, sides=(6, 5)):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return torch.einsum("bchw,nchw->bn", images, self.weights)


def images(count=3, sides=(6, 5)):
    return torch.rand(count, 3, *sides, generator=torch.Generator().manual_seed(1))


def contributions(model, batch, target):
    """What each pixel adds to the logit, (B,H*W)."""
    return (batch * model.weights[target]).sum(1).flatten(1).detach()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_on_a_linear_model_the_curves_are_cumulative_sums(steps, batch_size):
    model, batch = Linear(), images()
    heat = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(2))
    parts = contributions(model, batch, 1).gather(1, heat.flatten(1).argsort(dim=1, descending=True))
    kept = torch.cat([torch.zeros(3, 1), parts.cumsum(1)], 1)
    taken = [round(step * 30 / steps) for step in range(steps + 1)]
    choices = {"steps": steps, "batch_size": batch_size, "score": "logit", "baseline": "zeros"}
    inserted = metrics.insertion(model, batch, heat, 1, **choices)
    deleted = metrics.deletion(model, batch, heat, 1, **choices)
    torch.testing.assert_close(inserted.scores, kept[:, taken], atol=1e-5, rtol=0)
    torch.testing.assert_close(deleted.scores, kept[:, -1:] - kept[:, taken], atol=1e-5, rtol=0)
    assert inserted.fractions.tolist() == pytest.approx([count / 30 for count in taken])
    widths = inserted.fractions.diff()
    area = ((inserted.scores[:, 1:] + inserted.scores[:, :-1]) / 2 * widths).sum(1)
    torch.testing.assert_close(inserted.area, area)


def test_the_best_possible_map_of_a_linear_model_beats_all_others():
    model, batch = Linear(), images(1)
    best = contributions(model, batch, 0).reshape(1, 6, 5)
    choices = {"score": "logit", "baseline": "zeros", "steps": 30}
    top = metrics.insertion(model, batch, best, 0, **choices).area
    bottom = metrics.deletion(model, batch, best, 0, **choices).area
    for seed in range(20):
        other = torch.rand(1, 6, 5, generator=torch.Generator().manual_seed(seed))
        assert metrics.insertion(model, batch, other, 0, **choices).area < top
        assert metrics.deletion(model, batch, other, 0, **choices).area > bottom


def test_equal_heat_is_taken_in_a_drawn_order_and_not_row_by_row():
    model, batch = Linear((16, 16)), torch.ones(1, 3, 16, 16)
    with torch.no_grad():
        model.weights.zero_()
        model.weights[0, :, :8] = 1 / 384  # the logit is the share of the upper half that is left
    flat = torch.zeros(1, 16, 16)
    curve = metrics.deletion(model, batch, flat, 0, steps=8, score="logit")
    in_raster_order = torch.tensor([1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0])
    evenly = torch.linspace(1, 0, 9)
    assert (curve.scores[0] - evenly).abs().max() < 0.15
    assert (curve.scores[0] - in_raster_order).abs().max() > 0.3
    other = metrics.deletion(model, batch, flat, 0, steps=8, score="logit", seed=1)
    assert not torch.equal(curve.scores, other.scores)
    assert torch.equal(curve.scores, metrics.deletion(model, batch, flat, 0, steps=8, score="logit").scores)


def test_ranks_are_a_permutation_that_sorts_the_heat():
    heat = torch.randint(0, 4, (5, 9, 7), generator=torch.Generator().manual_seed(0)).float()
    places = ranks(heat)
    assert torch.equal(places.sort(dim=1).values, torch.arange(63).expand(5, -1))
    by_place = torch.empty(5, 63).scatter_(1, places, heat.flatten(1))
    assert (by_place.diff(dim=1) <= 0).all()


def test_an_image_is_judged_alone_as_among_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    batch = images(4, (12, 12))
    explanation = gradcam_fast.explain(model, batch)
    together = metrics.insertion(model, batch, explanation, steps=6).scores
    for i in range(4):
        alone = metrics.insertion(model, batch[i : i + 1], explanation.heatmap[i : i + 1], steps=6).scores
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)


def test_a_map_with_nan_has_nan_results_and_its_neighbours_do_not_notice():
    model, batch = Linear(), images()
    heat = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(2))
    expected = metrics.deletion(model, batch, heat, 1, steps=4).scores
    heat[1, 2, 3] = torch.nan
    found = metrics.deletion(model, batch, heat, 1, steps=4)
    assert torch.equal(found.scores[[0, 2]], expected[[0, 2]])
    assert found.scores[1, 1:].isnan().all() and found.area[1].isnan()


def test_k_classes_are_k_maps_judged_one_by_one():
    model, batch = Linear(), images()
    heat = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(2))
    both = metrics.insertion(model, batch, heat, [[0, 1], [1, 0], [0, 1]], steps=5)
    assert both.scores.shape == (3, 2, 6) and both.area.shape == (3, 2)
    first = metrics.insertion(model, batch, heat[:, 0], [0, 1, 0], steps=5)
    torch.testing.assert_close(both.scores[:, 0], first.scores)


def test_an_explanation_brings_its_classes_and_its_prediction():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.images, self.net = 0, nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, batch):
            self.images += len(batch)
            return self.net(batch)

    torch.manual_seed(0)
    model, batch = Counting().eval(), images(2, (8, 8))
    explanation = gradcam_fast.explain(model, batch, topk=2)
    model.images = 0
    curve = metrics.deletion(model, batch, explanation, steps=5)
    assert model.images == 2 * 2 * 5
    probabilities = explanation.logits.softmax(1).gather(1, explanation.target)
    torch.testing.assert_close(curve.scores[..., 0], probabilities)


def test_scores_of_a_callable_are_followed_too():
    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))

        def forward(self, batch):
            return self.net(batch)

    torch.manual_seed(0)
    model, batch = Segmenter().eval(), images(3, (8, 8))
    masks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(5)) > 0.5
    target = gradcam_fast.targets.segmentation(1, masks)
    heat = gradcam_fast.explain(model, batch, target=target, layer="net.1").heatmap
    curve = metrics.deletion(model, batch, heat, target, steps=4, batch_size=2)
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    gone = torch.ones(3, 64).scatter_(1, order[:, :32], 0).reshape(3, 1, 8, 8)
    with torch.no_grad():
        expected = target(model(batch * gone))
    torch.testing.assert_close(curve.scores[:, 2], expected, atol=2e-2, rtol=0)  # ties are taken in another order
    torch.testing.assert_close(curve.scores[:, 0], target(model(batch)).detach())


def test_small_maps_are_resized_as_heatmaps_are():
    model, batch = Linear((8, 8)), images(2, (8, 8))
    small = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3))
    large = torch.nn.functional.interpolate(small[:, None], (8, 8), mode="bilinear")[:, 0]
    found, expected = (metrics.deletion(model, batch, maps, 0, steps=8).scores for maps in (small, large))
    assert torch.equal(found, expected)


def naive_blur(batch):
    blurred = torch.empty_like(batch)
    for i in range(batch.shape[2]):
        for j in range(batch.shape[3]):
            blurred[..., i, j] = batch[..., max(0, i - 15) : i + 16, max(0, j - 15) : j + 16].mean((2, 3))
    return blurred


@pytest.mark.parametrize("name", ["zeros", "mean", "blur"])
def test_the_last_point_of_deletion_is_the_baseline(name):
    model, batch = Linear((40, 36)), images(2, (40, 36))
    heat = torch.rand(2, 40, 36)
    behind = {
        "zeros": torch.zeros_like(batch),
        "mean": batch.mean((2, 3), keepdim=True).expand_as(batch),
        "blur": naive_blur(batch),
    }[name]
    with torch.no_grad():
        expected = model(behind).softmax(1)[:, 1]
    found = metrics.deletion(model, batch, heat, 1, steps=3, baseline=name).scores[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    as_tensor = metrics.deletion(model, batch, heat, 1, steps=3, baseline=behind).scores[:, -1]
    as_callable = metrics.deletion(model, batch, heat, 1, steps=3, baseline=lambda _: behind).scores[:, -1]
    assert torch.equal(as_tensor, as_callable)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"baseline": "black"}, "baseline='black'"),
        ({"baseline": 0}, "baseline is a int; give a name"),
        ({"baseline": torch.zeros(2, 9)}, "baseline has shape (2, 9)"),
        ({"score": "probability"}, "score='probability'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"target": 2}, "target 2 is out of range for 2 classes"),
        ({"target": [0, 1]}, "target has shape (2,)"),
        ({"target": 0.5}, "target has dtype torch.float32"),
        ({"heatmaps": torch.rand(3, 6)}, "heatmaps (3, 6)"),
        ({"heatmaps": torch.rand(2, 6, 5)}, "heatmaps (2, 6, 5)"),
        ({"heatmaps": torch.zeros(3, 6, 5, dtype=torch.uint8)}, "heatmaps has dtype torch.uint8"),
        ({"images": [1, 2]}, "images has type list"),
        ({"target": lambda output: output}, "target returned scores of shape (3, 2)"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(choices, says):
    arguments = {"images": images(), "heatmaps": torch.rand(3, 6, 5), "target": 0, "steps": 2, **choices}
    with pytest.raises((TypeError, ValueError)) as refusal:
        metrics.deletion(Linear(), **arguments)
    assert_says(refusal, (TypeError, ValueError), [says])


def test_the_softmax_of_a_single_logit_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 1))
    with pytest.raises(ValueError, match='score="sigmoid"'):
        metrics.deletion(model, images(), torch.rand(3, 6, 5))
    curve = metrics.deletion(model, images(), torch.rand(3, 6, 5), score="sigmoid", steps=2)
    torch.testing.assert_close(curve.scores[:, 0], model(images()).sigmoid()[:, 0].detach())


def test_torchcam_integrates_the_same_curves_where_no_pixels_are_equal():
    torchcam = pytest.importorskip("torchcam", reason="torchcam is not installed (extra peers)")
    from torchcam.metrics import DeletionInsertionMetric

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    for parameter in model.parameters():
        parameter.data.abs_()  # so that ReLU leaves no equal zeros
    model, batch = model.eval(), torch.rand(2, 3, 8, 8)
    with torchcam.methods.GradCAM(model, "1") as extractor:
        judge = DeletionInsertionMetric(extractor, lambda logits: logits.softmax(1), steps=8)
        judge.update(batch)
        theirs = judge.summary()
        probabilities = model(batch).softmax(1)
        (maps,) = extractor(probabilities.argmax(1).tolist(), probabilities)
    assert all(len(heat.unique()) == 64 for heat in maps)
    deleted = metrics.deletion(model, batch, maps, steps=8, baseline="zeros")
    inserted = metrics.insertion(model, batch, maps, steps=8, baseline="zeros")
    assert theirs["deletion_auc"] == pytest.approx(float(deleted.area.mean()), abs=1e-5)
    assert theirs["insertion_auc"] == pytest.approx(float(inserted.area.mean()), abs=1e-5)


@pytest.fixture(scope="module")
def demo():
    """EfficientNet-Lite0, the demo's four photos, and their explanation."""
    from gradcam_fast.cli.demo import sample_photos
    from gradcam_fast.pipeline.networks import load_network

    network = load_network("efficientnet_lite0")
    batch = network.preprocess(sample_photos()[0]).images
    return network.model, batch, gradcam_fast.explain(network.model, batch)


# Measured before this module was written: 28 steps, zeros for deletion, a box of 31 pixels for insertion.
@pytest.mark.slow
def test_gradcam_has_the_areas_measured_for_the_demos_photos(demo):
    model, batch, explanation = demo
    assert float(metrics.deletion(model, batch, explanation).area.mean()) == pytest.approx(0.203, abs=6e-4)
    assert float(metrics.insertion(model, batch, explanation).area.mean()) == pytest.approx(0.613, abs=6e-4)


@pytest.mark.slow
def test_a_random_map_is_worse_than_gradcam(demo):
    model, batch, explanation = demo
    heat = metrics.random_map(batch)
    assert float(metrics.deletion(model, batch, heat, explanation.target).area.mean()) > 0.22
    assert float(metrics.insertion(model, batch, heat, explanation.target).area.mean()) < 0.45
