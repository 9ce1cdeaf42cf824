"""The op in plain PyTorch, with the formulas of all methods, for any device and also in float64.

It runs where no kernel is built, and the tests compare every kernel with it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch.compiler import is_compiling

from .._autocast import without_autocast
from .arguments import METHODS, SCALES, check_choice, check_maps, check_relu, check_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..types import Size

__all__ = ["cam", "normalise", "raw_map", "terms", "upsample"]


def cam(
    activations: Tensor,
    gradients: Tensor,
    size: Size,
    *,
    method: str = "gradcam",
    normalize: str = "minmax",
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn activations and gradients of one layer into heatmaps: weight, sum, ReLU, upsample, normalise.

    Args:
        activations: (B,C,h,w), float32, float16, bfloat16 or float64, with any strides. Series are (B,C,l) and volumes
            (B,C,d,h,w): they have one or three sides where images have h and w, and their heatmaps likewise.
        gradients: d score / d activations, (B,C,h,w), or (B,K,C,h,w) for K targets that share the activations.
        size: (H,W) of the heatmap in pixels, or one integer for all its sides.
        method: how channels are combined: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise`` or
            ``layercam``; formulas and papers in :func:`raw_map`.
        normalize: ``minmax`` gives (x - min) / (max - min), ``max`` gives x / max, ``none`` gives x, ``signed`` gives
            x / max(|x|) in [-1,1], without the ReLU: what speaks against the class is negative.
        relu: whether negative values of the map become 0, before upsampling.

    Returns:
        heatmap (B,H,W) or (B,K,H,W), in [0,1] under ``minmax``; raw_min and raw_max, (B,) or (B,K), the extremes of
        the upsampled map before normalisation. float32, or float64 for float64 inputs. An image with a NaN or an Inf
        in its activations or gradients gets zeros and NaN extremes; a flat map gets zeros under ``minmax``.

    Raises:
        TypeError: activations or gradients are not floating tensors or differ in dtype; ``size`` is not a size;
            ``relu`` is not a bool.
        ValueError: an unknown method or normalisation, shapes or devices that do not match, a size below 1.

    Example:
        >>> import torch
        >>> from gradcam_fast import reference
        >>> activations = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> heatmap, low, high = reference.cam(activations, torch.ones(1, 1, 2, 2), size=(2, 2))
        >>> heatmap * 3
        tensor([[[0., 1.],
                 [2., 3.]]])
    """
    check_choice("method", method, METHODS)
    check_choice("normalize", normalize, SCALES)
    check_relu(relu)
    check_maps(activations, gradients)
    rank = activations.dim() - 2
    sides = check_size(size, rank)
    with torch.no_grad(), _without_autocast(activations.device.type):
        several_targets = gradients.dim() > activations.dim()
        maps, finite = raw_map(activations, gradients if several_targets else gradients.unsqueeze(1), method)
        if relu and normalize != "signed":
            maps = maps.relu()
        for dim in range(-1, -rank - 1, -1):
            maps = upsample(maps, dim, sides[dim])
        pixels = tuple(range(-rank, 0))
        low, high = maps.amin(pixels), maps.amax(pixels)
        heatmap = normalise(maps, low, high, normalize)
        low, high = (torch.where(finite, extreme, torch.nan) for extreme in (low, high))
        return (heatmap, low, high) if several_targets else (heatmap[:, 0], low[:, 0], high[:, 0])


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if is_compiling() and torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)  # which torch.compile can trace
    return without_autocast(device_type)


def raw_map(activations: Tensor, gradients: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Combine the channels into one map per image and target, at the layer's own resolution and before ReLU.

    The arguments are not checked; :func:`cam` checks them.

    With the activations A (B,C,h,w), the gradients G (B,K,C,h,w) and the positions ij of channel k:

    ============= ======================================================= ==========================================
    method        map                                                     source
    ============= ======================================================= ==========================================
    gradcam       sum_k mean_ij(G_k) A_k                                  Selvaraju et al., ICCV 2017, eq. 1 and 2
    gradcam++     sum_k w_k A_k, w_k = sum_ij [G>0] G / (2 + S_k G),      Chattopadhay et al., WACV 2018, eq. 19,
                  S_k = sum_ij A_k, terms of denominator <= 0 are 0       with G^2 cancelled
    xgradcam      sum_k w_k A_k, w_k = sum_ij G A / sum_ij A (0/0 = 0)    Fu et al., BMVC 2020
    hirescam      sum_k G_k * A_k                                         Draelos and Carin, arXiv 2011.08891
    elementwise   sum_k ReLU(G_k * A_k)                                   GradCAMElementWise of pytorch-grad-cam
    layercam      sum_k ReLU(G_k) * A_k                                   Jiang et al., IEEE TIP 2021
    ============= ======================================================= ==========================================

    Args:
        activations: (B,C,h,w), or any number of axes in place of h and w.
        gradients: (B,K,C,h,w).
        method: one of the table.

    Returns:
        maps (B,K,h,w), float32, or float64 for float64 inputs; finite (B,K), bool: whether the image's activations, the
        target's gradients and the map are all finite. A map that is not finite is zeros.

    Example:
        >>> import torch
        >>> from gradcam_fast import reference
        >>> maps, finite = reference.raw_map(torch.full((1, 2, 1, 1), 3.0), torch.ones(1, 1, 2, 1, 1), "gradcam")
        >>> maps.item(), finite.item()
        (6.0, True)
    """
    dtype = torch.float64 if activations.dtype == torch.float64 else torch.float32
    # PyTorch's order of additions depends on the strides of the whole batch. Made contiguous, each image is summed by
    # itself, so that it has the same bits in any batch.
    a = activations.to(dtype).contiguous().flatten(2).unsqueeze(1)
    g = gradients.to(dtype).flatten(3)
    # Gradients expanded over all positions (stride 0) equal their own mean; writing them out could exceed the memory.
    pooled = (g[..., :1] if g.stride(-1) == 0 else g).contiguous()
    maps = _TERMS[method](a, pooled if method == "gradcam" else g.contiguous()).sum(-2)
    finite = a.isfinite().all((-2, -1)) & pooled.isfinite().all((-2, -1)) & maps.isfinite().all(-1)
    return torch.where(finite[..., None], maps, 0).unflatten(-1, activations.shape[2:]), finite


def terms(activations: Tensor, gradients: Tensor, method: str) -> Tensor:
    """The terms (B,K,C,h,w) of :func:`raw_map`'s sum over the channels, in float32 or float64; arguments as there.

    Example:
        >>> import torch
        >>> from gradcam_fast import reference
        >>> activations = torch.tensor([[[[1.0]], [[2.0]]]])
        >>> reference.terms(activations, torch.ones(1, 1, 2, 1, 1), "hirescam").flatten()
        tensor([1., 2.])
    """
    dtype = torch.float64 if activations.dtype == torch.float64 else torch.float32
    a, g = activations.to(dtype).flatten(2).unsqueeze(1), gradients.to(dtype).flatten(3)
    return _TERMS[method](a, g).unflatten(-1, activations.shape[2:])


# The functions below take A (B,1,C,positions) and G (B,K,C,positions) and return terms (B,K,C,positions) of a sum over
# the channels. They multiply and sum instead of using a matrix product, which a GPU may run in TF32.
def _gradcam(a: Tensor, g: Tensor) -> Tensor:
    return g.mean(-1, keepdim=True) * a


# The next two divide by sums whose terms may cancel, so they sum in float64 where the device has it.
def _gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    denominator = 2 + a.sum(-1, keepdim=True, dtype=_widest(a)) * g
    alphas = torch.where((g > 0) & (denominator > 0), g / denominator, 0)
    return alphas.sum(-1, keepdim=True).to(a.dtype) * a


def _xgradcam(a: Tensor, g: Tensor) -> Tensor:
    total = a.sum(-1, keepdim=True, dtype=_widest(a))
    weights = torch.where(total == 0, 0, (g.to(total.dtype) * a).sum(-1, keepdim=True) / total)
    return weights.to(a.dtype) * a


def _widest(maps: Tensor) -> torch.dtype:
    return torch.float32 if maps.device.type == "mps" else torch.float64


_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "xgradcam": _xgradcam,
    "hirescam": lambda a, g: g * a,
    "elementwise": lambda a, g: (g * a).relu(),
    "layercam": lambda a, g: g.relu() * a,
}


def normalise(maps: Tensor, low: Tensor, high: Tensor, normalize: str) -> Tensor:
    """Scale maps (...,H,W) by their extremes (...): ``minmax`` to [0,1], ``max`` to a maximum of 1, ``signed`` to a
    magnitude of at most 1; ``none`` does not.

    A flat map gives zeros under ``minmax``, a map without positive values under ``max``. The maps may have any number
    of axes after those of the extremes. The arguments are not checked; :func:`cam` checks them.

    Example:
        >>> import torch
        >>> from gradcam_fast import reference
        >>> reference.normalise(torch.tensor([[1.0, 5.0]]), torch.tensor(1.0), torch.tensor(5.0), "minmax")
        tensor([[0., 1.]])
    """
    per_map = (*low.shape, *[1] * (maps.dim() - low.dim()))
    return _NORMALIZE[normalize](maps, low.reshape(per_map), high.reshape(per_map))


_NORMALIZE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "minmax": lambda x, low, high: torch.where(high > low, (x - low) / (high - low), 0),
    "max": lambda x, _, high: torch.where(high > 0, x / high, 0),
    "none": lambda x, *_: x,
    "signed": lambda x, low, high: torch.where((high > 0) | (low < 0), x / torch.maximum(high, -low), 0),
}


def upsample(maps: Tensor, dim: int, out: int) -> Tensor:
    """Resize the axis ``dim`` (negative, -1 is the last) to ``out``, linearly with half-pixel centres, no antialiasing.

    Applied to both axes this is ``F.interpolate(mode="bilinear", align_corners=False)`` and OpenCV's ``INTER_LINEAR``;
    to one axis it is ``"linear"``, to three ``"trilinear"``. Computed as a + t (b - a) with t from integers: a flat map
    stays exactly flat, and t is exact at every size.

    Example:
        >>> import torch
        >>> from gradcam_fast import reference
        >>> reference.upsample(torch.tensor([0.0, 4.0]), -1, 4)
        tensor([0., 1., 3., 4.])
    """
    size = maps.shape[dim]
    position = ((2 * torch.arange(out, dtype=torch.int64, device=maps.device) + 1) * size - out).clamp(min=0)
    low = position.div(2 * out, rounding_mode="floor")
    fraction = (position - low * (2 * out)).to(maps.dtype) / (2 * out)
    below = maps.index_select(dim, low)
    above = maps.index_select(dim, (low + 1).clamp(max=size - 1))
    fraction = fraction.reshape(-1, *[1] * (-1 - dim))
    return below + fraction * (above - below)
