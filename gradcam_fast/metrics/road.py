"""ROAD: how the score changes when pixels are removed by imputation, which leaves no outline of what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .imputation import impute
from .perturbation import ranks
from .subject import Subject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..explainer import Explainer
    from ..explanation import Explanation
    from ..types import Target

__all__ = ["Road", "road"]


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
    score: str = "auto",
    batch_size: int | None = None,
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
