"""ROAD: how the score changes when pixels are removed by imputation, which leaves no outline of what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import conv2d

from .perturbation import ranks
from .subject import Subject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..explainer import Explainer
    from ..explanation import Explanation
    from ..types import Target

__all__ = ["Road", "impute", "road"]

# Weights of the eight neighbours, Rong et al. 2022, section 4.1.
_SIDE, _CORNER = 1 / 6, 1 / 12
# Relative to the right-hand side; the imputed values are then within 3e-4 of a direct solution.
_TOLERANCE = 1e-5
_MOST_STEPS = 2000


@dataclass(frozen=True, eq=False)
class Road:
    """Scores after the most and the least relevant pixels were removed.

    Attributes:
        percentages: (P,), how many of each 100 pixels were removed.
        most: (B,P) or (B,K,P), the score after the hottest pixels were removed; lower is better.
        least: (B,P) or (B,K,P), the score after the coldest pixels were removed; higher is better.
        combined: (B,) or (B,K), the mean over the percentages of ``(least - most) / 2``; higher is better.
    """

    percentages: Tensor
    most: Tensor
    least: Tensor
    combined: Tensor


def road(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    target: Target = None,
    *,
    percentages: Sequence[float] = (10, 30, 50, 70, 90),
    noise: float = 0.01,
    score: str = "softmax",
    batch_size: int = 32,
    seed: int = 0,
) -> Road:
    """Remove and debias: impute the most, and the least, relevant pixels from their neighbours, and score the rest.

    Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods", section 4: a removed
    pixel is the weighted mean of its neighbours, 1/6 for each of the four beside it and 1/12 for each of the four at
    its corners, plus noise. Exactly ``round(p / 100 * H * W)`` pixels are removed, also where a heatmap is mostly zero.

    Args:
        model, images, heatmaps, target, score, batch_size: see :class:`.Subject`; images (B,C,H,W).
        percentages: of the pixels that are removed, each in (0,100).
        noise: standard deviation of the noise, in the images' own units.
        seed: of the noise, and of the order of pixels of equal heat; both are the same for every image.

    Returns:
        Road: NaN for a heatmap with NaN or Inf. Cost: two predictions for each percentage, and the imputation.

    Raises:
        TypeError, ValueError: an argument that cannot work.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> result = metrics.road(model, torch.rand(2, 1, 8, 8), torch.rand(2, 8, 8), percentages=[20, 50])
        >>> result.most.shape, result.combined.shape
        (torch.Size([2, 2]), torch.Size([2]))
    """
    if not len(percentages) or not all(0 < percentage < 100 for percentage in percentages):
        raise ValueError(f"percentages={list(percentages)} are not all between 0 and 100; give such as (10, 50, 90)")
    if images.dim() != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; pixels are imputed in images (B,C,H,W) only")
    subject = Subject(model, images, heatmaps, target, score=score, batch_size=batch_size)
    places = ranks(subject.maps, seed)
    pixels = places.shape[1]
    counts = torch.tensor([round(percentage / 100 * pixels) for percentage in percentages], device=images.device)
    generator = torch.Generator().manual_seed(seed)
    grain = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32, device="cpu")
    grain = (noise * grain).to(images)

    def change(maps: Tensor, numbers: Tensor) -> Tensor:
        step = numbers % len(counts)
        hottest = places[maps] < counts[step, None]
        coldest = places[maps] >= pixels - counts[step, None]
        removed = torch.where((numbers < len(counts))[:, None], hottest, coldest).reshape(-1, *images.shape[2:])
        changed = impute(images[maps // subject.per_image], removed)
        return torch.where(removed[:, None], changed + grain, changed)

    most, least = subject.scores(2 * len(counts), change).split(len(counts), dim=1)
    return Road(
        torch.tensor(percentages, dtype=torch.float32, device=images.device),
        subject.results(most),
        subject.results(least),
        subject.results((least - most).mean(1) / 2),
    )


@torch.no_grad()
def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Replace the removed pixels of each image by the weighted means of their neighbours.

    Solves ``x_i = sum_j w_ij x_j / sum_j w_ij`` over the neighbours j of each removed pixel i inside the image, w = 1/6
    beside and 1/12 at the corners, by conjugate gradients for all images and channels at once: one 3x3 convolution a
    step. The system is symmetric and positive definite unless all pixels are removed; an image without any pixel left
    becomes 0.

    Args:
        images: (B,C,H,W), floating.
        removed: (B,H,W), bool.

    Returns:
        (B,C,H,W), the same values where nothing was removed.

    Example:
        >>> import torch
        >>> from gradcam_fast.metrics import impute
        >>> row = torch.tensor([[[[0.0, 9.0, 4.0]]]])
        >>> impute(row, torch.tensor([[[False, True, False]]]))
        tensor([[[[0., 2., 4.]]]])
    """
    batch, channels, height, width = images.shape
    values = images.float().reshape(batch * channels, 1, height, width)
    unknown = removed[:, None].expand(-1, channels, -1, -1).reshape(values.shape)
    kernel = values.new_tensor([[_CORNER, _SIDE, _CORNER], [_SIDE, 0, _SIDE], [_CORNER, _SIDE, _CORNER]])[None, None]

    def neighbours(of: Tensor) -> Tensor:
        return conv2d(of, kernel, padding=1)

    weight = neighbours(torch.ones_like(values[:1]))
    has_any = unknown.logical_not().flatten(1).any(1).reshape(-1, 1, 1, 1)
    unknown = unknown & has_any
    known = values.masked_fill(unknown, 0)
    right = neighbours(known).masked_fill(~unknown, 0)
    solution = torch.zeros_like(values)
    # Jacobi's preconditioner: the weights of pixels at the border are smaller.
    residual = right
    preconditioned = residual / weight
    direction = preconditioned
    product = _dot(residual, preconditioned)
    enough = _TOLERANCE**2 * _dot(right, right / weight)
    for step in range(_MOST_STEPS):
        # Every few steps, because the host waits for the answer.
        if step % 8 == 0 and not bool((product > enough).any()):
            break
        image = (weight * direction - neighbours(direction)).masked_fill(~unknown, 0)
        length = product / _dot(direction, image).clamp(min=torch.finfo(torch.float32).tiny)
        # An image that is solved stays as it is, so that its result does not depend on the others.
        length = torch.where(product > enough, length, 0)
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = residual / weight
        before, product = product, torch.where(product > enough, _dot(residual, preconditioned), product)
        direction = preconditioned + product / before.clamp(min=torch.finfo(torch.float32).tiny) * direction
    filled = torch.where(unknown, solution, values).masked_fill(~has_any, 0)
    return filled.reshape(images.shape).to(images.dtype)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2, 3), keepdim=True)
