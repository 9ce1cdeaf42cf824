"""Targets: each turns a model's output for one image into the number that is explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "BinaryClassifierOutputTarget",
    "ClassifierOutputReST",
    "ClassifierOutputSoftmaxTarget",
    "ClassifierOutputTarget",
    "FasterRCNNBoxScoreTarget",
    "FinerWeightedTarget",
    "RawScoresOutputTarget",
    "SemanticSegmentationTarget",
    "SoftmaxOutputTarget",
]


class ClassifierOutputTarget:
    """The logit of a class, of logits (N,) or (B,N).

    Example:
        >>> ClassifierOutputTarget(2)(torch.tensor([0.0, 1.0, 5.0])).item()
        5.0
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output[self.category] if model_output.dim() == 1 else model_output[:, self.category]


class ClassifierOutputSoftmaxTarget:
    """The probability of a class, the softmax of logits (N,) or (B,N)."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output.softmax(-1)[..., self.category]


class ClassifierOutputReST:
    """The logit of a class and its log-probability, added (arXiv 2501.06261)."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output[..., self.category] + model_output.log_softmax(-1)[..., self.category]


class BinaryClassifierOutputTarget:
    """The only output of a model that answers yes or no: itself for category 1, negated for 0."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output if self.category == 1 else -model_output


class SoftmaxOutputTarget:
    """All probabilities; a target of one image only where the model has one output."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output.softmax(-1)


class RawScoresOutputTarget:
    """The output as it is, of a model with one output: regression, or what a reconstruction is scored by."""

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output


class SemanticSegmentationTarget:
    """The sum of a class's logits (C,H,W) over a mask (H,W)."""

    def __init__(self, category: int, mask: NDArray[Any] | Tensor) -> None:
        self.category = category
        self.mask = torch.as_tensor(mask)

    def __call__(self, model_output: Tensor) -> Tensor:
        return (model_output[self.category] * self.mask.to(model_output.device)).sum()


class FasterRCNNBoxScoreTarget:
    """Of a detector's output for one image: overlap and score of the predictions that match given boxes, added up.

    A prediction matches a box if none overlaps it more, the overlap (intersection over union) is above the threshold
    and the labels agree.
    """

    def __init__(self, labels: Sequence[Any], bounding_boxes: Sequence[Any], iou_threshold: float = 0.5) -> None:
        self.labels = labels
        self.bounding_boxes = bounding_boxes
        self.iou_threshold = iou_threshold

    def __call__(self, model_outputs: Mapping[str, Tensor]) -> Tensor:
        boxes = model_outputs["boxes"]
        total = boxes.new_zeros(1)
        if not len(boxes):
            return total
        for box, label in zip(self.bounding_boxes, self.labels, strict=False):
            overlaps = _overlaps(torch.as_tensor(box).to(boxes), boxes)
            best = overlaps.argmax()
            if overlaps[best] > self.iou_threshold and model_outputs["labels"][best] == label:
                total = total + overlaps[best] + model_outputs["scores"][best]
        return total


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union (N,) of one box (4,) with others (N,4), as x1, y1, x2, y2."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    shared = sides.prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared)


class FinerWeightedTarget:
    """A class's logit less alpha times the mean of others', weighted by their probabilities (Finer-CAM, CVPR 2025).

    The weights are differentiated, too.
    """

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        self.main_category = main_category
        self.comparison_categories = comparison_categories
        self.alpha = alpha

    def __call__(self, model_output: Tensor) -> Tensor:
        rivals = list(self.comparison_categories)
        weights = model_output.softmax(-1)[..., rivals]
        differences = model_output[..., self.main_category, None] - self.alpha * model_output[..., rivals]
        # The constant keeps the score finite where no other class is left to compare with.
        return (weights * differences).sum(-1) / (weights.sum(-1) + 1e-9)
