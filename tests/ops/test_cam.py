"""The numbers of the op, fused and reference, against values computed by hand, OpenCV and F.interpolate.

What only the fused kernel promises is in test_fused_kernel.py.
"""

import math

import cv2
import numpy
import pytest
import torch
from support.tolerances import SAME_INPUTS
from torch.nn import functional as F

import gradcam_fast
from gradcam_fast import reference
from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

IMPLEMENTATIONS = {"cam": gradcam_fast.cam, "reference": reference.cam}


@pytest.fixture(params=IMPLEMENTATIONS)
def cam(request):
    return IMPLEMENTATIONS[request.param]


def maps(*values):
    """One image whose channels are the given 2x2 maps."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, len(values), 2, 2)


# Two channels, gradients of both signs; the raw maps below were computed with pencil and paper.
ACTIVATIONS = maps([1, 2, 3, 4], [2, 0, 1, -1])
GRADIENTS = maps([1, -1, 2, 2], [-1, 0, 1, -2])
RAW = {
    # means 1 and -1/2
    "gradcam": [1 - 1, 2 - 0, 3 - 0.5, 4 + 0.5],
    # S = 10 and 2; w_1 = 1/12 + 2/22 + 2/22, w_2 = 1/(2+2)
    "gradcam++": [w1 * a + 0.25 * b for w1 in [1 / 12 + 4 / 22] for a, b in [(1, 2), (2, 0), (3, 1), (4, -1)]],
    # w_1 = (1 - 2 + 6 + 8)/10, w_2 = (-2 + 0 + 1 + 2)/2
    "xgradcam": [1.3 + 1, 2.6, 3.9 + 0.5, 5.2 - 0.5],
    "hirescam": [1 - 2, -2 + 0, 6 + 1, 8 + 2],
    "elementwise": [1 + 0, 0 + 0, 6 + 1, 8 + 2],
    "layercam": [1 + 0, 0 + 0, 6 + 1, 8 + 0],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_map_computed_by_hand(cam, method):
    heatmap, low, high = cam(ACTIVATIONS, GRADIENTS, 2, method=method, normalize="none", relu=False)
    expected = torch.tensor(RAW[method], dtype=torch.float32)
    torch.testing.assert_close(heatmap.flatten(), expected, rtol=0, atol=1e-5)
    assert (low.item(), high.item()) == pytest.approx((expected.min().item(), expected.max().item()), abs=1e-5)


def test_relu_comes_before_upsampling(cam):
    # Half-way between -2 and 2 is 0 if the ReLU comes afterwards, and 1 if it comes before.
    heatmap, _, _ = cam(torch.tensor([[[[-2.0, 2.0]]]]), torch.ones(1, 1, 1, 2), (1, 3), normalize="none")
    assert heatmap[0, 0].tolist() == pytest.approx([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("normalize", "relu", "expected"),
    [
        ("minmax", True, [0.0, 0.0, 0.7, 1.0]),
        ("minmax", False, [1 / 12, 0.0, 0.75, 1.0]),
        ("max", True, [0.0, 0.0, 0.7, 1.0]),
        ("max", False, [-0.1, -0.2, 0.7, 1.0]),
        ("none", True, [0.0, 0.0, 7.0, 10.0]),
        ("none", False, [-1.0, -2.0, 7.0, 10.0]),
    ],
)
def test_normalisation_by_hand(cam, normalize, relu, expected):
    heatmap, _, _ = cam(ACTIVATIONS, GRADIENTS, 2, method="hirescam", normalize=normalize, relu=relu)
    assert heatmap.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_extremes_are_those_of_the_upsampled_map(cam):
    # Downscaling 4 positions to 2 pixels never reaches the 8 in the corner.
    activations = torch.tensor([[[[0.0, 2.0, 4.0, 8.0]]]])
    heatmap, low, high = cam(activations, torch.ones(1, 1, 1, 4), (1, 2), normalize="none")
    assert heatmap.flatten().tolist() == [1.0, 6.0]
    assert (low.item(), high.item()) == (1.0, 6.0)


class CaptumConvNet(torch.nn.Sequential):
    """The network of captum's tests (BasicModel_ConvNet_One_Conv), from its published weights."""

    def __init__(self, inplace):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 2, 3)
        self.relu1 = torch.nn.ReLU(inplace)
        self.flatten = torch.nn.Flatten()
        self.fc1 = torch.nn.Linear(8, 4)
        self.relu2 = torch.nn.ReLU(inplace)
        with torch.no_grad():
            self.conv1.weight.fill_(1)
            self.conv1.bias.copy_(torch.tensor([-50.0, -75.0]))
            self.fc1.weight.copy_(torch.tensor([[1.0] * 5 + [-1.0] * 3] * 4))
            self.fc1.bias.zero_()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("layer", "expected"), [("conv1", [11.25, 13.5, 20.25, 22.5]), ("relu1", [0.0, 4.0, 28.0, 32.5])]
)
def test_captums_convolution_network_has_captums_maps(layer, expected, inplace):
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    explanation = gradcam_fast.explain(CaptumConvNet(inplace), images, target=0, layer=layer, size=2, normalize="none")
    assert explanation.heatmap.flatten().tolist() == expected


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (14, 3), (1, 6), (1, 1)])
@pytest.mark.parametrize("size", [(224, 224), (31, 64), (14, 14), (3, 4), (1, 1)])
def test_upsampling_is_opencv_inter_linear_and_interpolate(cam, shape, size):
    activations = torch.rand(1, 1, *shape)
    heatmap, _, _ = cam(activations, torch.ones(1, 1, *shape), size, normalize="none")
    opencv = cv2.resize(activations[0, 0].numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    torchs = F.interpolate(activations.double(), size, mode="bilinear", align_corners=False)[0, 0]
    tolerance = SAME_INPUTS[torch.float32]
    numpy.testing.assert_allclose(heatmap[0], opencv, rtol=0, atol=tolerance)
    numpy.testing.assert_allclose(heatmap[0], torchs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_k_targets_are_k_single_calls(cam, method):
    activations, gradients = torch.randn(2, 12, 5, 4), torch.randn(2, 3, 12, 5, 4)
    together = cam(activations, gradients, (9, 8), method=method)
    for k in range(3):
        alone = cam(activations, gradients[:, k], (9, 8), method=method)
        assert all(torch.equal(t[:, k], a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("layout", ["batch outermost", "batch innermost", "channels innermost"])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_has_the_same_bits_alone_and_in_a_batch(cam, method, layout, expanded):
    orders = {"batch outermost": (0, 1, 2, 3), "batch innermost": (1, 2, 3, 0), "channels innermost": (0, 2, 3, 1)}
    stored = orders[layout]
    back = [stored.index(axis) for axis in range(4)]
    both = [torch.randn(5, 33, 40, 7).permute(stored).contiguous().permute(back) for _ in range(2)]
    activations, gradients = both[0], both[1][..., :1, :1].expand_as(both[1]) if expanded else both[1]
    together = cam(activations, gradients, (9, 8), method=method)
    for i in range(5):
        alone = cam(activations[i : i + 1], gradients[i : i + 1], (9, 8), method=method)
        assert all(torch.equal(t[i : i + 1], a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-4, 1e4, 1e9, 1e12])
@pytest.mark.parametrize("normalize", ["minmax", "max"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "gradcam++"])
def test_scaling_the_gradients_changes_nothing(cam, method, normalize, scale):
    activations, gradients = torch.randn(2, 40, 7, 7), torch.randn(2, 40, 7, 7)
    expected, _, _ = cam(activations, gradients, 32, method=method, normalize=normalize)
    heatmap, _, _ = cam(activations, gradients * scale, 32, method=method, normalize=normalize)
    torch.testing.assert_close(heatmap, expected, rtol=0, atol=SAME_INPUTS[torch.float32])
    assert expected.amax((-2, -1)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("exponent", [-140, -100, -60, 60, 100, 120])
def test_no_float32_range_is_too_small_or_too_large_to_normalise(cam, exponent):
    activations = maps([0, 1, 2, 4])
    scaled = activations * 2.0**exponent
    heatmap, _, high = cam(scaled, torch.ones_like(scaled), 2)
    assert heatmap.flatten().tolist() == [0.0, 0.25, 0.5, 1.0]
    assert high.item() == 2.0 ** (exponent + 2)


def test_positions_that_no_pixel_reads_do_not_change_the_pixels(cam):
    # Downscaled by three, only the second and the fifth position are read.
    activations = torch.tensor([[[[1.0, 0.0, 1.0, 1.0, 1e-40, 1.0]]]])
    for normalize in ("max", "minmax"):
        heatmap, _, _ = cam(activations, torch.ones(1, 1, 1, 6), (1, 2), normalize=normalize)
        assert heatmap.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("exponent", [-120, 100, 120])
def test_signed_maps_of_any_magnitude_are_normalised(cam, exponent):
    scaled = maps([-4, -2, 0, 4]) * 2.0**exponent
    heatmap, low, high = cam(scaled, torch.ones_like(scaled), 2, relu=False)
    assert heatmap.flatten().tolist() == [0.0, 0.25, 0.5, 1.0]
    assert (low.item(), high.item()) == (-(2.0 ** (exponent + 2)), 2.0 ** (exponent + 2))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["activations", "gradients"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_nan_and_inf_change_only_their_own_image(cam, method, normalize, relu, where, broken):
    inputs = {"activations": torch.randn(3, 20, 4, 5), "gradients": torch.randn(3, 20, 4, 5)}
    options = {"method": method, "normalize": normalize, "relu": relu}
    before = cam(*inputs.values(), (8, 9), **options)
    inputs[where][1, 13, 2, 3] = broken
    heatmap, low, high = cam(*inputs.values(), (8, 9), **options)
    assert torch.equal(heatmap[1], torch.zeros(8, 9))
    assert low[1].isnan() and high[1].isnan()
    for neighbour in (0, 2):
        assert all(torch.equal(b[neighbour], a[neighbour]) for b, a in zip(before, (heatmap, low, high), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_of_nan_counts_where_its_activation_is_zero(cam, method):
    activations, gradients = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    gradients[0, 1, 0, 0] = math.nan
    assert cam(activations, gradients, 2, method=method)[2].isnan()


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (3, 5)])
def test_a_flat_map_gives_zeros(cam, value, shape):
    activations = torch.full((1, 1, *shape), value)
    heatmap, low, high = cam(activations, torch.ones(1, 1, *shape), (31, 17))
    assert torch.equal(heatmap, torch.zeros(1, 31, 17))
    assert low.item() == high.item() == pytest.approx(value)


def test_a_map_without_a_positive_value_gives_zeros_under_max(cam):
    heatmap, low, high = cam(-ACTIVATIONS[:, :1], torch.ones(1, 1, 2, 2), 2, normalize="max", relu=False)
    assert torch.equal(heatmap, torch.zeros(1, 2, 2))
    assert (low.item(), high.item()) == (-4.0, -1.0)


@pytest.mark.parametrize("normalize", ["minmax", "max"])
def test_zeros_have_no_sign(cam, normalize):
    heatmap, _, _ = cam(torch.ones(1, 1, 3, 3), -torch.ones(1, 1, 3, 3), (9, 20), normalize=normalize, relu=False)
    assert torch.equal(heatmap, torch.zeros(1, 9, 20))
    assert not heatmap.signbit().any()


def test_an_empty_batch_gives_an_empty_batch(cam):
    heatmap, low, high = cam(torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2), 4)
    assert heatmap.shape == (0, 4, 4) and low.shape == high.shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_float64_stays_float64_and_agrees(cam, method):
    activations, gradients = torch.randn(2, 30, 6, 5), torch.randn(2, 30, 6, 5)
    single = cam(activations, gradients, 20, method=method)[0]
    double = cam(activations.double(), gradients.double(), 20, method=method)[0]
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=SAME_INPUTS[torch.float32])


def test_no_result_requires_grad(cam):
    activations = torch.randn(1, 3, 4, 4, requires_grad=True)
    results = cam(activations, torch.randn(1, 3, 4, 4, requires_grad=True), 8)
    assert not any(result.requires_grad for result in results)


def test_autocast_does_not_lower_the_precision(cam):
    activations, gradients = torch.randn(1, 50, 7, 7), torch.randn(1, 50, 7, 7)
    expected = cam(activations, gradients, 14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = cam(activations, gradients, 14)
    assert all(torch.equal(r, e) for r, e in zip(results, expected, strict=True))
