"""What holds for every metric that scores changed images: NaN, flat maps, K classes, tokens, segmentation, devices."""

import pytest
import torch
from support.networks import ConvNet, PatchNet
from torch import nn

import gradcam_fast
from gradcam_fast import metrics, targets

# Each as (model, images, heatmaps, target) -> (B,...) or (B,K,...).
SCORED = {
    "insertion": lambda *asked, **how: metrics.insertion(*asked, steps=4, **how).scores,
    "deletion": lambda *asked, **how: metrics.deletion(*asked, steps=4, **how).scores,
    "inpainting": lambda *asked, **how: metrics.deletion(*asked, steps=4, baseline="inpainting", **how).scores,
    "road, most": lambda *asked, **how: metrics.road(*asked, percentages=[20, 50], **how).most,
    "road, least": lambda *asked, **how: metrics.road(*asked, percentages=[20, 50], **how).least,
    "drop": metrics.confidence_drop,
    "increase": metrics.confidence_increase,
    "win rate": lambda model, images, maps, *target, **how: metrics.win_rate(
        model, images, maps, 1 - getattr(maps, "heatmap", maps), *target, **how
    ),
}
PLACED = {
    "pointing game": lambda maps, objects: metrics.pointing_game(maps, objects, tolerance=1),
    "mass": metrics.mass_accuracy,
    "rank": metrics.rank_accuracy,
    "iou": metrics.iou_at,
}
every_score = pytest.mark.parametrize("metric", SCORED.values(), ids=SCORED)
every_place = pytest.mark.parametrize("metric", PLACED.values(), ids=PLACED)
# Two float32 forwards of other batches.
ALONE = {"atol": 1e-6, "rtol": 0}


def network():
    torch.manual_seed(0)
    return ConvNet()


def photos(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def heat(*shape):
    return torch.rand(*shape, 16, 16, generator=torch.Generator().manual_seed(2))


@every_score
def test_a_map_with_nan_or_inf_has_nan_and_its_neighbours_do_not_change(metric):
    maps = heat(3)
    expected = metric(network(), photos(), maps, 1)
    for bad in (torch.nan, torch.inf):
        broken = maps.clone()
        broken[1, 3, 4] = bad
        found = metric(network(), photos(), broken, 1)
        torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], **ALONE)
        assert found[1].flatten()[1 if found[1].numel() == 5 else 0].isnan()


@every_score
def test_a_flat_map_is_judged_whatever_its_heat(metric):
    zeros = metric(network(), photos(), torch.zeros(3, 16, 16), 1)
    assert zeros.isfinite().all()
    if zeros.dim() > 1:  # what ranks pixels does not see how hot they are; what masks with the heat does
        assert torch.equal(zeros, metric(network(), photos(), torch.full((3, 16, 16), 0.5), 1))
        assert not torch.equal(zeros, metric(network(), photos(), torch.zeros(3, 16, 16), 1, seed=1))


@every_score
def test_k_classes_are_k_maps_each_judged_alone(metric):
    maps, classes = heat(3, 2), torch.tensor([[0, 1], [2, 0], [1, 3]])
    both = metric(network(), photos(), maps, classes)
    assert both.shape[:2] == (3, 2)
    for k in range(2):
        torch.testing.assert_close(both[:, k], metric(network(), photos(), maps[:, k], classes[:, k]), **ALONE)


@every_score
def test_an_image_is_judged_alone_as_among_others(metric):
    together = metric(network(), photos(), heat(3), 1)
    for i in range(3):
        torch.testing.assert_close(
            metric(network(), photos()[i : i + 1], heat(3)[i : i + 1], 1)[0], together[i], **ALONE
        )
    torch.testing.assert_close(metric(network(), photos(), heat(3), 1, batch_size=2), together, **ALONE)


@every_score
def test_maps_of_tokens_are_judged_at_the_images_size(metric):
    model = PatchNet(1)
    explanation = gradcam_fast.explain(model, photos(), size=(4, 4))
    large = torch.nn.functional.interpolate(explanation.heatmap[:, None], (16, 16), mode="bilinear")[:, 0]
    found = metric(model, photos(), explanation)
    assert found.isfinite().all()
    torch.testing.assert_close(found, metric(model, photos(), large, explanation.target), **ALONE)


@every_score
def test_the_score_of_a_segmentation_is_followed_in_each_image(metric):
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    masks = heat(3) > 0.5
    found = metric(model, photos(), heat(3), targets.segmentation(1, masks))
    for i in range(3):
        one = metric(model, photos()[i : i + 1], heat(3)[i : i + 1], targets.segmentation(1, masks[i : i + 1]))
        torch.testing.assert_close(one[0], found[i], **ALONE)


@every_place
def test_objects_of_k_maps_are_found_each_alone(metric):
    maps, masks = heat(3, 2), heat(3, 2) > 0.7
    for k in range(2):
        torch.testing.assert_close(metric(maps, masks)[:, k], metric(maps[:, k], masks[:, k]), **ALONE)


@every_place
def test_a_flat_map_is_a_guess(metric):
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    share = 0.25
    found = float(metric(torch.ones(1, 16, 16), masks))
    # The pointing game counts pixels up to the tolerance away, too.
    assert share - 0.1 <= found <= (0.4 if metric is PLACED["pointing game"] else share + 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("metric", {**SCORED, **PLACED})
def test_a_device_gives_the_numbers_of_the_cpu(metric, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    if metric in PLACED:
        here, there = (PLACED[metric](heat(3).to(device), (heat(3) > 0.7).to(device)) for device in ("cpu", "cuda"))
    else:
        here, there = (
            SCORED[metric](network().to(device), photos().to(device), heat(3).to(device), 1)
            for device in ("cpu", "cuda")
        )
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=0)
