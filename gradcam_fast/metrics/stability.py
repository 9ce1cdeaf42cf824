"""Stability and complexity: how much a heatmap changes with its image, and how concentrated it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from ..explainer import Explainer
from .subject import check_count, layer_names

if TYPE_CHECKING:
    from torch import Tensor

    from ..explanation import Explanation
    from ..types import Target

__all__ = ["Complexity", "Stability", "complexity", "stability"]

_SHIFTS = [(rows, columns) for rows in (-1, 0, 1) for columns in (-1, 0, 1) if (rows, columns) != (0, 0)]


@dataclass(frozen=True, eq=False)
class Stability:
    """The largest change of each heatmap: the distance to the changed map divided by the length of the map, from 0.

    Attributes:
        noise: (B,) or (B,K), under small noise; lower is better.
        shift: (B,) or (B,K), under shifts of the image by one pixel, after shifting back; lower is better.
    """

    noise: Tensor
    shift: Tensor


def stability(
    explainer: Explainer,
    images: Tensor,
    target: Target = None,
    *,
    explanation: Explanation | None = None,
    radius: float = 0.02,
    samples: int = 8,
    seed: int = 0,
) -> Stability:
    """The largest change of each heatmap under small noise, and under one-pixel shifts of the image.

    ``max ||h(x + d) - h(x)|| / ||h(x)||`` over ``samples`` uniform draws d in [-r, r]^n, with r ``radius`` times the
    range of the image's values (Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 2,
    here relative to the map); and the same over the eight shifts by one pixel, of which each map is shifted back,
    without its border. The class explained is that of the unchanged image. Cost: ``samples + 8`` explanations.

    Args:
        explainer: its layer is the one that the first explanation finds, unless it names one.
        images: (B,C,H,W).
        target: as for :func:`gradcam_fast.explain`.
        explanation: of these images by this explainer; None makes one.
        radius: of the noise, as a share of the range of each image's values.
        samples: how many draws.
        seed: of the noise, the same for every image.

    Returns:
        Stability: NaN where the heatmap is zero everywhere or not finite.

    Raises:
        TypeError, ValueError: an argument that cannot work.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> explainer = gradcam_fast.Explainer(model)
        >>> gradcam_fast.metrics.stability(explainer, torch.rand(2, 3, 16, 16)).noise.shape
        torch.Size([2])
    """
    if not isinstance(explainer, Explainer):
        raise TypeError(f"explainer is a {type(explainer).__name__}; give a gradcam_fast.Explainer")
    if not isinstance(images, torch.Tensor) or images.dim() != 4:
        raise ValueError("images are no tensor (B,C,H,W); give one batch of images")
    if not radius > 0:
        raise ValueError(f"radius={radius} is not positive; give a share of the range of the images' values")
    check_count("samples", samples, "draws")
    first = explainer(images, target) if explanation is None else explanation
    explainer = explainer.replace(layer=layer_names(first))
    classes = target if first.target is None else first.target
    low, high = (extreme(dim=(1, 2, 3), keepdim=True) for extreme in (images.amin, images.amax))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.zeros_like(first.score, dtype=torch.float32)
    for _ in range(samples):
        drawn = torch.rand(images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
        drawn = drawn.mul_(2).sub_(1).to(images)
        changed = explainer(images + radius * (high - low) * drawn, classes).heatmap
        noise = torch.maximum(noise, _change(first.heatmap, changed))
    shift = torch.zeros_like(noise)
    inner = first.heatmap[..., 1:-1, 1:-1]
    for rows, columns in _SHIFTS:
        changed = explainer(_shifted(images, rows, columns), classes).heatmap
        back = changed.roll((-rows, -columns), (-2, -1))[..., 1:-1, 1:-1]
        shift = torch.maximum(shift, _change(inner, back))
    return Stability(noise, shift)


def _shifted(images: Tensor, rows: int, columns: int) -> Tensor:
    """The images moved down and to the right; the border is repeated."""
    height, width = images.shape[-2:]
    return pad(images, (1, 1, 1, 1), mode="replicate")[..., 1 - rows :, 1 - columns :][..., :height, :width]


def _change(before: Tensor, after: Tensor) -> Tensor:
    length = before.flatten(-2).norm(dim=-1)
    return torch.where(length > 0, (after - before).flatten(-2).norm(dim=-1) / length, torch.nan)


@dataclass(frozen=True, eq=False)
class Complexity:
    """How spread out each heatmap is.

    Attributes:
        entropy: (B,) or (B,K), in nats, from 0 (one pixel) to log(H*W) (equal everywhere); lower is simpler.
        gini: (B,) or (B,K), from 0 (equal everywhere) to 1 - 1/(H*W) (one pixel); higher is simpler.
    """

    entropy: Tensor
    gini: Tensor


def complexity(heatmaps: Tensor) -> Complexity:
    """Entropy and Gini index of the heatmaps' mass.

    With p the values divided by their sum: entropy ``-sum p log p`` (Bhatt, Weller and Moura 2020, "Evaluating and
    aggregating feature-based model explanations", definition 5), and Gini ``1 - 2 sum_k p_(k) (n - k + 1/2) / n`` over
    the values in ascending order, k = 1..n (Chalasani et al. 2020, "Concise explanations of neural networks using
    adversarial training", section 5). Negative values count 0. No prediction is needed.

    Args:
        heatmaps: (B,H,W) or (B,K,H,W).

    Returns:
        Complexity: NaN for a heatmap without positive values, or with NaN or Inf.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> result = metrics.complexity(torch.tensor([[[1.0, 1.0]], [[0.0, 5.0]]]))
        >>> result.entropy, result.gini
        (tensor([0.6931, 0.0000]), tensor([0.0000, 0.5000]))
    """
    if not isinstance(heatmaps, torch.Tensor) or not heatmaps.is_floating_point() or heatmaps.dim() < 3:
        raise TypeError("heatmaps are no floating tensor (B,H,W) or (B,K,H,W); give that of an explanation")
    heat = heatmaps.float().flatten(-2).clamp(min=0)
    share = heat / heat.sum(-1, keepdim=True)
    entropy = torch.special.entr(share).sum(-1)
    count = share.shape[-1]
    ascending = share.sort(dim=-1).values
    weights = (count - torch.arange(count, device=share.device, dtype=torch.float32) - 0.5) / count
    gini = 1 - 2 * (ascending * weights).sum(-1)
    return Complexity(entropy, gini)
