"""Inputs of the op in every shape, dtype and memory layout, and the comparison of its results with the reference."""

import torch

import gradcam_fast
from gradcam_fast import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# (B, K, C, h, w) -> (H, W); K = 0 stands for gradients without a target dimension.
SHAPES = [
    ((1, 0, 1, 1, 1), (1, 1)),
    ((3, 0, 5, 1, 1), (6, 4)),
    ((2, 0, 2048, 7, 7), (224, 224)),
    ((1, 0, 512, 14, 14), (224, 224)),
    ((65, 0, 17, 7, 7), (28, 28)),
    ((1, 10, 130, 7, 7), (56, 56)),
    ((2, 3, 64, 5, 9), (31, 64)),
    ((2, 1, 63, 9, 2), (9, 2)),
    ((1, 0, 100, 13, 13), (7, 5)),
    ((1, 0, 9, 30, 40), (1, 3)),
    ((1, 2, 33, 56, 56), (60, 50)),
    ((1, 0, 8, 1, 300), (2, 5)),
]


def inputs(shape, dtype=torch.float32):
    """Random activations (b,c,h,w) and gradients (b,k,c,h,w), or (b,c,h,w) for k = 0."""
    b, k, c, h, w = shape
    return torch.randn(b, c, h, w).to(dtype), torch.randn(*(b, k, c, h, w) if k else (b, c, h, w)).to(dtype)


# What float32 rounds off one value, as a share of the tolerance times the magnitudes summed up in the map. In
# X-Grad-CAM a channel whose activations nearly cancel may outweigh all others, and the additions behind it are rounded
# at its magnitude.
ROUNDING = 0.01
ROUNDING_IF_CANCELLING = {"xgradcam": 0.05}


def assert_agrees(activations, gradients, size, tolerance, cam=gradcam_fast.cam, **options):
    """The op's results are those of the reference in float64, within a tolerance for maps on [0,1].

    Normalisation divides by the map's range. Where that is below 2 % of the magnitudes summed up in the map, it
    magnifies the rounding of the float32 sums, so the tolerance grows with it. A range below the rounding of one pixel
    (two pixels beside the same peak, say) leaves only noise, and the heatmap is not compared.

    ``max`` without ReLU gives low/high where the map is lowest, which has no bound, and the tolerance grows with it. A
    maximum within the tolerance of zero has no certain sign, and the heatmap is not compared.
    """
    expected = expected_results(activations, gradients, size, tolerance, **options)
    assert_as_expected(cam(activations, gradients, size, **options), expected)


def expected_results(activations, gradients, size, tolerance, *, may_cancel=False, **options):
    """The results of the reference in float64, each with its tolerance; `assert_agrees` says which.

    With ``may_cancel`` the pooled gradients may be small against those pooled, in float32: of random gradients, each
    mean carries a unit in the last place of the mean magnitude.
    """
    a, g = activations.double(), gradients.double()
    heatmap, low, high = reference.cam(a, g, size, **options)
    method, normalize = options.get("method", "gradcam"), options.get("normalize", "minmax")
    share = ROUNDING_IF_CANCELLING.get(method, ROUNDING) if may_cancel else ROUNDING
    error = share * tolerance * summed_magnitudes(a, g, method)
    if may_cancel and method == "gradcam":
        error = torch.maximum(error, 2.0**-23 * summed_magnitudes(a, g.abs(), method))
    peak = torch.maximum(low.abs(), high.abs())
    of_raw = torch.maximum(tolerance * peak, error).clamp(min=1e-30 * tolerance)
    if normalize == "none":
        of_heatmap = of_raw
    else:
        of_heatmap = heatmap_error(low, high, error, normalize)
        largest = torch.where(high > 0, -low / high, 1).clamp(min=1) if normalize == "max" else 1
        of_heatmap = torch.maximum(of_heatmap, tolerance * torch.ones_like(high) * largest)
    if normalize == "minmax":
        varied = activations.flatten(1).amax(1) > activations.flatten(1).amin(1)
        varied = varied[:, None] if high.dim() == 2 else varied
        of_heatmap = of_heatmap.masked_fill((high - low <= 2.0**-22 * peak) & (peak > 0) & varied, torch.inf)
    if normalize == "max":
        of_heatmap = of_heatmap.masked_fill(high.abs() <= of_raw, torch.inf)
    return (heatmap, of_heatmap[..., None, None]), (low, of_raw), (high, of_raw)


def heatmap_error(low, high, error, normalize):
    """How far a normalised map is off, at most, where each value of the map is off by at most ``error``.

    The extremes are values, too: they are off by as much, each in its own direction. Under ``minmax``, with the range
    R, (x - low) / R grows with x and falls with both extremes. So it is furthest off where x is e too high and both are
    e too low, which gives (x - low + 2 e) / R: 2 e / R too much, and 2 e / R too little the other way round. Under
    ``max`` x / high is off by no more than 2 e / high likewise, where x is not negative. Where it is,
    (x - e) / (high - e) is (1 - x / high) e / (high - e) too little.
    """
    if normalize == "minmax":
        return torch.where(high > low, 2 * error / (high - low), 0)
    below_zero = (1 - low / high) / (high - error).clamp(min=0)
    return torch.where(high > 0, error * torch.maximum(2 / high, torch.where(low < 0, below_zero, 0)), 0)


def assert_as_expected(results, expected):
    assert [result.dtype for result in results] == [torch.float32] * 3
    for result, (value, tolerance) in zip(results, expected, strict=True):
        assert_within(result, value, tolerance)


def summed_magnitudes(activations, gradients, method):
    """The largest sum over the channels of |what a channel adds|, at any position: (B,) or (B,K)."""
    several = gradients.dim() == 5
    gradients = (gradients if several else gradients.unsqueeze(1)).movedim(2, 1)
    terms, _ = reference.raw_map(activations.flatten(0, 1)[:, None], gradients.flatten(0, 1)[:, :, None], method)
    summed = terms.abs().unflatten(0, activations.shape[:2]).sum(1).amax((-2, -1))
    return summed if several else summed[:, 0]


def assert_within(actual, expected, tolerance):
    excess = ((actual.double() - expected).abs() - tolerance).max().item()
    assert excess <= 0, f"off by {excess:.2e} more than allowed"


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.movedim(-3, -1).contiguous().movedim(-1, -3),
    "channels last, rows innermost": lambda t: t.transpose(-3, -1).contiguous().transpose(-3, -1),
    "tokens": lambda t: _tokens(t),
    "every other column of a wider map": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "a corner of a larger map": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 4))[..., 1:-4, 3:-2],
    "rows and columns exchanged": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "a slice of more channels": lambda t: torch.cat([t, t], -3)[..., : t.shape[-3], :, :],
    "batch reversed in memory": lambda t: t.flip(0).contiguous().flip(0),
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "off by one element": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


def _tokens(maps):
    """The maps (...,C,h,w) as views of tokens (...,1+hw,C), as a transformer with a class token has them."""
    tokens = maps.flatten(-2).transpose(-1, -2)
    tokens = torch.cat([torch.full_like(tokens[..., :1, :], 99.0), tokens], -2)
    return tokens[..., 1:, :].transpose(-1, -2).unflatten(-1, maps.shape[-2:])


def assert_same_bits(actual, expected):
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
