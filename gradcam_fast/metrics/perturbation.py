"""Insertion and deletion: how fast the score rises and falls as the pixels of a heatmap come and go, hottest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .image_baseline import check_baseline, pixel_remover
from .subject import Subject, check_count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..explainer import Explainer
    from ..explanation import Explanation
    from ..types import Target
    from .image_baseline import Baseline

__all__ = ["Curve", "deletion", "insertion", "ranks"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores while pixels are inserted or deleted.

    Attributes:
        fractions: (S+1,), the share of pixels that were inserted or deleted, from 0 to 1.
        scores: (B,S+1) or (B,K,S+1), the score of the class at each share.
        area: (B,) or (B,K), the area under the curve by the trapezoidal rule: the mean score.
    """

    fractions: Tensor
    scores: Tensor
    area: Tensor


def deletion(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    target: Target = None,
    *,
    steps: int = 28,
    baseline: Baseline = "zeros",
    score: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
) -> Curve:
    """Delete the pixels of each image, hottest first, and follow the score.

    With I the image, J its baseline and M_s the round(s * H * W / S) hottest pixels, the curve is the score of
    ``where(M_s, J, I)`` for s = 0..S. A small area means that the pixels the heatmap calls important are those the
    score needs: lower is better. (Petsiuk, Das and Saenko 2018, "RISE", section 4.2.)

    Args:
        model, images, heatmaps, target, score, batch_size: see :class:`.Subject`. With an Explanation for ``heatmaps``
            its prediction is the curve's first point.
        steps: S. Each costs one prediction.
        baseline: what takes a pixel's place: "zeros", "mean" (of each image and channel), "blur" (the mean over a box
            of 31 pixels), "inpainting" (what :func:`impute` makes of the pixels that are left; it takes time, too), a
            tensor that broadcasts to the images, or a callable from the images to one.
        seed: pixels of equal heat are taken in an order drawn from it, the same for every image. A flat heatmap
            is therefore judged like a random one, and not from top to bottom.

    Returns:
        Curve: a heatmap with NaN or Inf has NaN scores.

    Raises:
        TypeError, ValueError: an argument that cannot work.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> pixels = torch.nn.Flatten()  # a model whose logits are the pixels
        >>> image, heatmap = torch.tensor([[[[4.0, 0.0]]]]), torch.tensor([[[1.0, 0.0]]])
        >>> metrics.deletion(pixels, image, heatmap, 0, steps=2, score="logit").scores
        tensor([[4., 0., 0.]])
    """
    return _curve(model, images, heatmaps, target, steps, baseline, score, batch_size, seed, inserts=False)


def insertion(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    target: Target = None,
    *,
    steps: int = 28,
    baseline: Baseline = "blur",
    score: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
) -> Curve:
    """Insert the pixels of each image into its baseline, hottest first, and follow the score.

    With I the image, J its baseline and M_s the round(s * H * W / S) hottest pixels, the curve is the score of
    ``where(M_s, I, J)`` for s = 0..S. A large area means that the score needs no other pixels: higher is better.
    (Petsiuk, Das and Saenko 2018, "RISE", section 4.2.) Arguments and errors are those of :func:`deletion`.

    Returns:
        Curve: its last point is the prediction of the unchanged image. Cost: S predictions.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> pixels = torch.nn.Flatten()  # a model whose logits are the pixels
        >>> image, heatmap = torch.tensor([[[[4.0, 0.0]]]]), torch.tensor([[[1.0, 0.0]]])
        >>> metrics.insertion(pixels, image, heatmap, 0, steps=2, score="logit", baseline="zeros").area
        tensor([3.])
    """
    return _curve(model, images, heatmaps, target, steps, baseline, score, batch_size, seed, inserts=True)


def ranks(maps: Tensor, seed: int = 0) -> Tensor:
    """The place of each pixel when the pixels of each map are sorted, hottest first: (N,H*W) int64.

    Pixels of equal heat are sorted by an order that is drawn from ``seed``, the same for every map.
    """
    heat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(heat.shape[1], generator=generator, device="cpu").to(maps.device)
    order = drawn[heat[:, drawn].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(heat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _curve(
    model: nn.Module | Explainer,
    images: Tensor,
    heatmaps: Tensor | Explanation,
    target: Target,
    steps: int,
    baseline: Baseline,
    score: str,
    batch_size: int | None,
    seed: int,
    *,
    inserts: bool,
) -> Curve:
    check_count("steps", steps, "steps")
    check_baseline(baseline, images)
    subject = Subject(model, images, heatmaps, target, score=score, batch_size=batch_size)
    remove = pixel_remover(images, baseline)
    places = ranks(subject.maps, seed)
    pixels = places.shape[1]
    taken = torch.tensor([round(step * pixels / steps) for step in range(steps + 1)], device=images.device)
    # The unchanged image is the first point of deletion, and the last of insertion.
    first = 0 if inserts else 1

    def change(maps: Tensor, numbers: Tensor) -> Tensor:
        is_taken = (places[maps] < taken[numbers + first, None]).reshape(-1, *images.shape[2:])
        return remove(maps // subject.per_image, is_taken != inserts)

    scores = subject.scores(steps, change)
    parts = (scores, subject.original[:, None]) if inserts else (subject.original[:, None], scores)
    scores = torch.cat(parts, 1)
    fractions = taken.float() / pixels
    return Curve(fractions, subject.results(scores), subject.results(torch.trapezoid(scores, fractions, dim=1)))
