"""Checks the boxes and labels of the target ``detection``, and finds the detector's predictions that match them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .dense_predictions import dense_output, read_predictions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_boxes", "matching_scores"]

_EXPECTED = "give boxes (K,4) and integer labels (K,) for one image, or lists of them with one of each per image"
_KEYS = {"boxes", "labels", "scores"}


def as_boxes(boxes: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Turn boxes (K,4) and labels (K,) of one image, or lists with one of each per image, into (B,K,4) and (B,K).

    Images with fewer boxes than others are padded with boxes of zeros.

    Raises:
        TypeError, ValueError: boxes that are not x1, y1, x2, y2, or not one integer label for each.
    """
    image_boxes, image_labels = _per_image("boxes", boxes, (4,)), _per_image("labels", labels, ())
    shapes = [tuple(tensor.shape) for tensor in image_boxes], [tuple(tensor.shape) for tensor in image_labels]
    if shapes[0] != [(*shape, 4) for shape in shapes[1]] or not any(map(len, image_labels)):
        raise ValueError(f"boxes have shapes {shapes[0]} and labels {shapes[1]}, image by image; {_EXPECTED}")
    if any(tensor.is_floating_point() or tensor.dtype == torch.bool for tensor in image_labels):
        raise TypeError(f"labels have dtype {image_labels[0].dtype}; {_EXPECTED}")
    # Checked on the CPU only: on another device the host would wait for the values.
    if any(tensor.device.type == "cpu" and (tensor[:, 2:] < tensor[:, :2]).any() for tensor in image_boxes):
        raise ValueError("a box has x2 < x1 or y2 < y1; give x1, y1, x2, y2, not a corner with width and height")
    # The padding has no area, so no prediction overlaps it.
    return pad_sequence(image_boxes, batch_first=True).float(), pad_sequence(image_labels, batch_first=True)


def _per_image(name: str, values: Any, shape: tuple[int, ...]) -> list[Tensor]:
    """A tensor (K,*shape) for each image; the values of a lone image make a list of one."""
    try:
        # An image without boxes may have an empty list, which would become floating labels.
        tensors = [
            torch.zeros(0, *shape, dtype=torch.long, device="cpu") if isinstance(value, (list, tuple)) and not value
            else torch.as_tensor(value, device=getattr(value, "device", "cpu")).detach()
            for value in values
        ]  # fmt: skip
        return [torch.stack(tensors)] if tensors and tensors[0].dim() == len(shape) else tensors
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is a {type(values).__name__} that makes no tensors; {_EXPECTED}") from None


def matching_scores(
    output: Any,
    boxes: Tensor,
    labels: Tensor,
    min_iou: float,
    *,
    highest_label: int = 0,
    head: str | None = None,
    box_format: str | None = None,
    classes: int | None = None,
) -> Tensor:
    """Score each box (B,K) by the prediction of its label that overlaps it most; 0 if none overlaps by ``min_iou``.

    Args:
        highest_label: of the labels, where the host need not wait for it; 0 otherwise.
        head, box_format, classes: how to read a head's output, see :func:`gradcam_fast.targets.detection`.

    Raises:
        TypeError, ValueError: neither one dict of boxes, labels and scores per image, nor a tensor of all predictions.
    """
    predictions = output if isinstance(output, (list, tuple)) else []
    dense = None
    if not predictions or not all(isinstance(image, Mapping) and image.keys() >= _KEYS for image in predictions):
        dense = dense_output(output)
        if dense is None:
            raise TypeError(
                f"detection got a {type(output).__name__}; expected one dict of boxes, labels and scores per image, as "
                "torchvision's detectors return after model.eval(), or a tensor (B,4+classes,N) of all predictions; "
                "convert other outputs with output=..."
            )
    images = len(predictions) if dense is None else len(dense)
    if images != len(boxes):
        raise ValueError(
            f"boxes are given for a batch of {len(boxes)} but the model returned predictions for {images}; "
            "give a list with the boxes (K,4) of each image, and a list with their labels"
        )
    device = predictions[0]["scores"].device if dense is None else dense.device
    boxes, labels = (tensor.to(device, non_blocking=True) for tensor in (boxes, labels))
    if dense is None:
        per_image = zip(predictions, boxes, labels, strict=True)
        return torch.stack([_image_scores(*prediction_and_boxes, min_iou) for prediction_and_boxes in per_image])
    read = read_predictions(dense, head, box_format, classes)
    overlap = _overlap(boxes, read.boxes, min_iou)
    if read.labels is not None:
        matches = labels.unsqueeze(2) == read.labels.unsqueeze(1)
        return _of_largest_overlap(torch.where(matches, overlap, -1), read.scores.unsqueeze(1))
    count = read.scores.shape[1]
    if highest_label >= count:
        raise ValueError(
            f"label {highest_label} is out of range for predictions of {count} classes (0 to {count - 1}); the classes "
            "of such an output are numbered from 0, without background"
        )
    # Labels on another device cannot be refused without waiting for it; out of range, they match nothing.
    in_range = (labels >= 0) & (labels < count)
    every = labels.clamp(0, count - 1).unsqueeze(2).expand(-1, -1, overlap.shape[2])
    return _of_largest_overlap(torch.where(in_range.unsqueeze(2), overlap, -1), read.scores.gather(1, every))


def _image_scores(prediction: Mapping[str, Tensor], boxes: Tensor, labels: Tensor, min_iou: float) -> Tensor:
    overlap = _overlap(boxes, prediction["boxes"].detach().float(), min_iou)
    matches = labels.unsqueeze(1) == prediction["labels"]
    return _of_largest_overlap(torch.where(matches, overlap, -1), prediction["scores"].unsqueeze(0))


def _overlap(given: Tensor, predicted: Tensor, min_iou: float) -> Tensor:
    """Intersection over union (...,K,N) of boxes (...,K,4) and (...,N,4), and -1 where that is below ``min_iou``."""
    given, predicted = given.unsqueeze(-2), predicted.unsqueeze(-3)
    sides = torch.minimum(given[..., 2:], predicted[..., 2:]) - torch.maximum(given[..., :2], predicted[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    areas = (given[..., 2:] - given[..., :2]).prod(-1) + (predicted[..., 2:] - predicted[..., :2]).prod(-1)
    iou = intersection / (areas - intersection)
    # Two boxes without area give 0/0, for which the comparison is False.
    return torch.where(iou >= min_iou, iou, -1)


def _of_largest_overlap(overlap: Tensor, scores: Tensor) -> Tensor:
    """Of scores (...,K or 1,N) those (...,K) with the largest overlap (...,K,N); the highest score among equals."""
    # A prediction of score 0 is appended, which wins where none matches. So there is always a score, with a graph.
    overlap, scores = F.pad(overlap, (0, 1)), F.pad(scores, (0, 1)).expand(*overlap.shape[:-1], -1)
    # Only the scores are differentiated; the boxes merely choose among them.
    largest = overlap == overlap.amax(-1, keepdim=True)
    best = torch.where(largest, scores.detach(), -torch.inf).argmax(-1, keepdim=True)
    return scores.gather(-1, best).squeeze(-1)
