"""Imputation equals a direct solution of the paper's equations."""

import pytest
import torch

from gradcam_fast import metrics

pytest.importorskip("scipy", reason="the direct solution is SciPy's (extra metrics)")

from gradcam_fast.compat.pytorch_grad_cam.metrics.road import NoisyLinearImputer


def solved_directly(images, removed):
    """SciPy's solution of the sparse equations in float64, which pytorch-grad-cam's users get."""
    imputer = NoisyLinearImputer(noise=0)
    return torch.stack([imputer(image, (~gone).float()) for image, gone in zip(images.double(), removed, strict=True)])


def smooth(count, sides, seed=0):
    drawn = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(drawn, sides, mode="bilinear")[:, 0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_equals_a_direct_solution(share):
    images = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    removed = torch.stack([heat >= heat.quantile(1 - share) for heat in smooth(2, (24, 20))])
    expected = solved_directly(images, removed)
    torch.testing.assert_close(metrics.impute(images, removed).double(), expected, atol=3e-4, rtol=0)


@pytest.mark.slow
def test_imputation_equals_a_direct_solution_at_the_size_of_a_network():
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    removed = torch.stack([heat >= heat.quantile(0.1) for heat in smooth(1, (224, 224))])
    expected = solved_directly(images, removed)
    torch.testing.assert_close(metrics.impute(images, removed).double(), expected, atol=3e-4, rtol=0)


def test_imputation_equals_a_direct_solution_on_a_large_region():
    images = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    removed = torch.zeros(1, 48, 48, dtype=torch.bool)
    removed[:, 1:, :] = True  # far from the only row that is left
    expected = solved_directly(images, removed)
    torch.testing.assert_close(metrics.impute(images, removed).double(), expected, atol=3e-4, rtol=0)


def test_an_image_is_imputed_alone_as_among_others():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.2, 0.5, 0.95])[:, None, None]
    removed = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)) < shares
    together = metrics.impute(images, removed)
    for i in range(3):
        alone = metrics.impute(images[i : i + 1], removed[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i], atol=1e-6, rtol=0)
    assert torch.equal(together.masked_fill(removed[:, None], 0), images.masked_fill(removed[:, None], 0))


def test_an_image_without_any_pixel_left_becomes_zero():
    images = torch.rand(2, 3, 8, 8)
    removed = torch.stack([torch.ones(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)])
    found = metrics.impute(images, removed)
    assert not found[0].any() and torch.equal(found[1], images[1])


def test_pytorch_grad_cams_imputer_without_noise_fills_in_the_same_values():
    peer = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="pytorch-grad-cam is not installed")
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(16, 16, generator=torch.Generator().manual_seed(1)) < 0.6
    theirs = peer.NoisyLinearImputer(noise=0)(image, (~removed).float())
    torch.testing.assert_close(metrics.impute(image[None], removed[None])[0], theirs.float(), atol=3e-4, rtol=0)
