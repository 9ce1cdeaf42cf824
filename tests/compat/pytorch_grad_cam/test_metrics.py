"""Metrics give the numbers of pytorch-grad-cam."""

import numpy as np
import pytest
import torch
from support.networks import ConvNet

from gradcam_fast.compat.pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from gradcam_fast.compat.pytorch_grad_cam.metrics import arcc, cam_mult_image, perturbation_confidence, road
from gradcam_fast.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

peer = pytest.importorskip("pytorch_grad_cam")
TARGETS = [ClassifierOutputSoftmaxTarget(category) for category in (1, 3, 0)]


@pytest.fixture
def model():
    return ConvNet()


@pytest.fixture
def maps(model, images):
    return GradCAM(model, [model.features])(images, TARGETS)


@pytest.fixture
def without_noise(monkeypatch):
    """ROAD's imputers of both libraries, without their noise."""
    for library in (peer.metrics.road, road):
        monkeypatch.setattr(library.NoisyLinearImputer.__init__, "__defaults__", (0, road.neighbors_weights))


@pytest.mark.parametrize("name", ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence"])
def test_confidence_in_the_image_times_its_map(name, model, images, maps):
    expected = getattr(peer.metrics.cam_mult_image, name)()(images, maps, TARGETS, model)
    actual = getattr(cam_mult_image, name)()(images, maps, TARGETS, model)
    assert actual.shape == (3,) and actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_perturbed_images_and_their_scores_are_returned_where_asked_for(model, images, maps):
    metric = cam_mult_image.CamMultImageConfidenceChange()
    scores, perturbed = metric(images, maps, TARGETS, model, return_visualization=True, return_diff=False)
    torch.testing.assert_close(perturbed, images * torch.from_numpy(maps)[:, None])
    with torch.no_grad():
        outputs = model(perturbed)
    np.testing.assert_allclose(scores, [float(t(o)) for t, o in zip(TARGETS, outputs, strict=True)], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ROADMostRelevantFirst", [70]),
        ("ROADLeastRelevantFirst", [30]),
        ("ROADMostRelevantFirst", ["auto"]),
        ("ROADMostRelevantFirstAverage", [[20, 60]]),
        ("ROADLeastRelevantFirstAverage", [[20, 60]]),
        ("ROADCombined", [[20, 60]]),
    ],
)
def test_road(name, arguments, without_noise, model, images, maps):
    pytest.importorskip("scipy")
    if arguments == ["auto"]:
        # There Otsu's mask of 0 and 255 stays in bytes, which the solver takes for no mask of 0 and 1 in float.
        metric = road.ROADMostRelevantFirst("auto")
        assert np.isfinite(metric(images, maps, TARGETS, model)).all()
        return
    expected = getattr(peer.metrics.road, name)(*arguments)(images, maps, TARGETS, model)
    actual = getattr(road, name)(*arguments)(images, maps, TARGETS, model)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_removed_pixels_solve_the_means_of_their_neighbours():
    pytest.importorskip("scipy")
    image = torch.arange(25.0).reshape(1, 5, 5)
    mask = torch.ones(5, 5)
    mask[2, 2] = mask[1, 3] = 0
    imputed = road.NoisyLinearImputer(noise=0)(image, mask)
    torch.testing.assert_close(imputed, image)  # a plane is its own mean
    noisy = road.NoisyLinearImputer(noise=0.5)(image, mask)
    assert (noisy != image).sum() == 2
    assert torch.equal(road.NoisyLinearImputer()(image, torch.ones(5, 5)), image)


def test_arcc(without_noise, model, images, maps):
    pytest.importorskip("scipy")
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.arcc").ARCC(GradCAMPlusPlus(model, [model.features]))
    ours = arcc.ARCC(GradCAMPlusPlus(model, [model.features]))
    expected = theirs(images, maps, TARGETS, model)
    np.testing.assert_allclose(ours(images, maps, TARGETS, model), expected, atol=1e-5)


def test_the_least_relevant_are_those_of_the_turned_map():
    kept = []

    def imputer(image, mask):
        kept.append(mask)
        return image

    image, map_ = torch.zeros(3, 2, 2), torch.tensor([[0.0, 0.1], [0.9, 1.0]])
    perturbation_confidence.RemoveMostRelevantFirst(50, imputer)(image, map_)
    perturbation_confidence.RemoveLeastRelevantFirst(50, imputer)(image, map_)
    assert kept[0].tolist() == [[1, 1], [0, 0]] and kept[1].tolist() == [[0, 0], [1, 1]]
