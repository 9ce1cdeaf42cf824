"""Confidence: how a class's score changes when only what a heatmap shows is left of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .image_baseline import as_baseline, check_baseline
from .subject import Subject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..explainer import Explainer
    from ..explanation import Explanation
    from ..types import Target
    from .image_baseline import Baseline

__all__ = ["confidence_drop", "confidence_increase", "win_rate"]


def confidence_drop(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    target: Target = None,
    *,
    baseline: Baseline = "zeros",
    score: str = "auto",
    batch_size: int | None = None,
) -> Tensor:
    """The share of its score that a class loses when the image is masked with its heatmap.

    ``max(0, Y - O) / Y`` with Y the score of image I and O that of ``h * I + (1 - h) * J``, h the heatmap in [0,1] at
    the image's size and J the baseline (Chattopadhay et al. 2018, "Grad-CAM++", section 4.1.1, "average drop"; there J
    is 0). In [0,1] for positive scores; lower is better. Cost: one prediction for each heatmap.

    Args:
        model, images, heatmaps, target, score, batch_size: see :class:`.Subject`.
        baseline: J, as in :func:`deletion`, but for "inpainting".

    Returns:
        (B,) or (B,K); NaN for a heatmap with NaN or Inf, and where Y is 0.

    Raises:
        TypeError, ValueError: an argument that cannot work.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> pixels = torch.nn.Flatten()  # a model whose logits are the pixels
        >>> image, heatmap = torch.tensor([[[[4.0, 1.0]]]]), torch.tensor([[[0.25, 1.0]]])
        >>> metrics.confidence_drop(pixels, image, heatmap, 0, score="logit")
        tensor([0.7500])
    """
    check_baseline(baseline)
    subject = Subject(model, images, heatmaps, target, score=score, batch_size=batch_size)
    masked = _masked_scores(subject, baseline)
    return subject.results((subject.original - masked).clamp(min=0) / subject.original)


def confidence_increase(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    target: Target = None,
    *,
    baseline: Baseline = "zeros",
    score: str = "auto",
    batch_size: int | None = None,
) -> Tensor:
    """Whether a class's score rises when the image is masked with its heatmap: 1 or 0.

    Chattopadhay et al. 2018, "Grad-CAM++", section 4.1.2 ("increase in confidence"); the mean over images is the share
    of them whose score rises: higher is better. Arguments and cost are those of :func:`confidence_drop`.

    Returns:
        (B,) or (B,K) float32; NaN for a heatmap with NaN or Inf.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> pixels = torch.nn.Flatten()
        >>> image, heatmap = torch.tensor([[[[1.0, 4.0]]]]), torch.tensor([[[1.0, 0.0]]])
        >>> metrics.confidence_increase(pixels, image, heatmap, 0)
        tensor([1.])
    """
    check_baseline(baseline)
    subject = Subject(model, images, heatmaps, target, score=score, batch_size=batch_size)
    masked = _masked_scores(subject, baseline)
    return subject.results((masked > subject.original).float().masked_fill(masked.isnan(), torch.nan))


def win_rate(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    rivals: Tensor,
    target: Target = None,
    *,
    baseline: Baseline = "zeros",
    score: str = "auto",
    batch_size: int | None = None,
) -> Tensor:
    """Whether a heatmap loses less of the class's score than a rival's heatmap does: 1, 0, or 1/2 for equal losses.

    Chattopadhay et al. 2018, "Grad-CAM++", section 4.1.3 ("win %"), with the drop of :func:`confidence_drop`, whose
    other arguments these are. The mean over images is the share of them that the heatmap wins: higher is better. Cost:
    two predictions for each heatmap.

    Args:
        rivals: heatmaps of the same shape (before resizing), for the same classes.

    Returns:
        (B,) or (B,K) float32; NaN where one of the two heatmaps has NaN or Inf.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> pixels = torch.nn.Flatten()
        >>> image, heatmap = torch.tensor([[[[4.0, 1.0]]]]), torch.tensor([[[1.0, 0.0]]])
        >>> metrics.win_rate(pixels, image, heatmap, 1 - heatmap, 0)
        tensor([1.])
    """
    check_baseline(baseline)
    subject = Subject(model, images, heatmaps, target, score=score, batch_size=batch_size)
    own, other = _drops(subject, baseline), _drops(subject.with_maps(rivals), baseline)
    won = (own < other).float() + 0.5 * (own == other)
    return subject.results(won.masked_fill(own.isnan() | other.isnan(), torch.nan))


def _drops(subject: Subject, baseline: Baseline) -> Tensor:
    return (subject.original - _masked_scores(subject, baseline)).clamp(min=0)


def _masked_scores(subject: Subject, baseline: Baseline) -> Tensor:
    behind = as_baseline(subject.images, baseline)

    def change(maps: Tensor, numbers: Tensor) -> Tensor:
        weight = subject.maps[maps, None].to(subject.images.dtype)
        rows = maps // subject.per_image
        return torch.lerp(behind[rows], subject.images[rows], weight)

    return subject.scores(1, change)[:, 0]
