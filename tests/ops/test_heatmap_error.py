"""The bound of the operator's tests is as wide as rounding makes it, and a kernel with a fault is outside of it."""

import pytest
import torch
from support.op_cases import assert_as_expected, expected_results, heatmap_error
from support.tolerances import SAME_INPUTS
from torch import nn

from gradcam_fast import reference
from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

SIZE = (30, 25)
ERROR = 1e-3


def heatmap_of(values, normalize):
    return reference.normalise(values, values.amin(-1), values.amax(-1), normalize)


def maps_from(low):
    """Ten thousand maps of 20 values in float64, from about ``low`` to 1; all with a positive maximum."""
    values = low + (1 - low) * torch.rand(10_000, 20, dtype=torch.float64)
    return values[values.amax(-1) > 0.1]


@pytest.mark.parametrize("low", [-3.0, 0.0, 0.9])
@pytest.mark.parametrize("normalize", ["minmax", "max"])
def test_values_that_are_off_by_an_error_stay_within_the_bound(normalize, low):
    values = maps_from(low)
    bound = heatmap_error(values.amin(-1), values.amax(-1), ERROR, normalize)
    for _ in range(10):
        errors = ERROR * (torch.rand_like(values) * 2 - 1).sign()
        off = (heatmap_of(values + errors, normalize) - heatmap_of(values, normalize)).abs().amax(-1)
        assert (off <= bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("low", [-3.0, 0.0, 0.9])
@pytest.mark.parametrize("normalize", ["minmax", "max"])
def test_the_bound_is_reached(normalize, low):
    values = maps_from(low)
    least, most = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    bound = heatmap_error(least[:, 0], most[:, 0], ERROR, normalize)
    below = (values < most - 2 * ERROR) & (values > least)  # what is raised must not become an extreme
    raised = torch.where(below, ERROR, -ERROR)
    lowered = torch.full_like(values, -ERROR)
    reached = [
        (heatmap_of(values + errors, normalize) - heatmap_of(values, normalize)).abs().amax(-1) / bound
        for errors in (raised, lowered)
    ]
    assert torch.maximum(*reached).amax() == pytest.approx(1, rel=0.01)


def unchanged(terms, weights):
    return terms


def without_a_channel(terms, weights):
    return torch.cat([terms[:, :, :-1], torch.zeros_like(terms[:, :, -1:])], 2)


def with_a_weight_in_bfloat16(terms, weights):
    """The terms with one weight rounded, or with those of one channel where there are no weights."""
    rounded = terms.clone()
    last = weights[:, :, -1:]
    rounded[:, :, -1:] *= torch.where(last == 0, 1, last.bfloat16() / last)
    return rounded


def half_a_pixel_away(maps, size):
    return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=True)


def resized(maps, size):
    return reference.upsample(reference.upsample(maps, -1, size[1]), -2, size[0])


def kernel(activations, gradients, size, *, method, normalize, relu, change=unchanged, resize=resized):
    """The op in float64, step by step, with a fault in one of the steps."""
    a, g = activations.double(), gradients.double()
    terms = reference.terms(a, g, method)
    maps = change(terms, terms / a[:, None]).sum(2)
    maps = resize(maps.relu() if relu else maps, size)
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    heatmap = reference.normalise(maps, low, high, normalize)
    return heatmap.float(), low.float(), high.float()


def independent():
    return torch.randn(2, 64, 14, 14), torch.randn(2, 3, 64, 14, 14)


def cancelling():
    """Pairs of channels that differ by 2 %, with opposite gradients: most of what is summed up cancels."""
    a, g = torch.randn(2, 32, 14, 14), torch.randn(2, 3, 32, 14, 14)
    return torch.cat([a, a * (1 + 0.02 * torch.rand(2, 32, 1, 1))], 1), torch.cat([g, -g], 2)


FAULTS = {
    "a channel left out": {"change": without_a_channel},
    "a weight in bfloat16": {"change": with_a_weight_in_bfloat16},
    "half a pixel away": {"resize": half_a_pixel_away},
}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("maps", [independent, cancelling])
def test_a_kernel_with_a_fault_is_found(maps, method, normalize, relu):
    options = {"method": method, "normalize": normalize, "relu": relu}
    activations, gradients = maps()
    tolerance = SAME_INPUTS[torch.float32]
    for may_cancel in (False, True):
        expected = expected_results(activations, gradients, SIZE, tolerance, may_cancel=may_cancel, **options)
        assert_as_expected(kernel(activations, gradients, SIZE, **options), expected)
        for name, fault in FAULTS.items():
            results = kernel(activations, gradients, SIZE, **options, **fault)
            with pytest.raises(AssertionError, match="off by"):
                assert_as_expected(results, expected)
                pytest.fail(f"not found: {name}")
