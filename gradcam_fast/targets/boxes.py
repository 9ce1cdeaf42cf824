"""Checks the boxes and labels of the target ``detection``, and finds the detector's predictions that match them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

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
    image_boxes, image_labels = _per_image("boxes", boxes, 2), _per_image("labels", labels, 1)
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


def _per_image(name: str, values: Any, dims: int) -> list[Tensor]:
    """A tensor of ``dims`` dimensions for each image; values of a lone image make a list of one."""
    try:
        tensors = [torch.as_tensor(value).detach() for value in values]
        return [torch.stack(tensors)] if tensors and tensors[0].dim() == dims - 1 else tensors
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is a {type(values).__name__} that makes no tensors; {_EXPECTED}") from None


def matching_scores(output: Any, boxes: Tensor, labels: Tensor, min_iou: float) -> Tensor:
    """Score each box (B,K) by the prediction of its label that overlaps it most; 0 if none overlaps by ``min_iou``.

    Raises:
        TypeError, ValueError: not one dict of boxes, labels and scores per image.
    """
    predictions = output if isinstance(output, (list, tuple)) else []
    if not predictions or not all(isinstance(image, Mapping) and image.keys() >= _KEYS for image in predictions):
        raise TypeError(
            f"detection got a {type(output).__name__}; expected one dict of boxes, labels and scores per image, as "
            "torchvision's detectors return after model.eval(); convert other outputs with output=..."
        )
    if len(predictions) != len(boxes):
        raise ValueError(
            f"boxes are given for a batch of {len(boxes)} but the model returned predictions for {len(predictions)}; "
            "give a list with the boxes (K,4) of each image, and a list with their labels"
        )
    device = predictions[0]["scores"].device
    boxes, labels = (tensor.to(device, non_blocking=True) for tensor in (boxes, labels))
    per_image = zip(predictions, boxes, labels, strict=True)
    return torch.stack([_image_scores(*prediction_and_boxes, min_iou) for prediction_and_boxes in per_image])


def _image_scores(prediction: Mapping[str, Tensor], boxes: Tensor, labels: Tensor, min_iou: float) -> Tensor:
    # Only the scores are differentiated; the boxes merely choose among them.
    given, predicted = boxes.unsqueeze(1), prediction["boxes"].detach().float()
    sides = torch.minimum(given[..., 2:], predicted[:, 2:]) - torch.maximum(given[..., :2], predicted[:, :2])
    intersection = sides.clamp(min=0).prod(2)
    areas = (given[..., 2:] - given[..., :2]).prod(2) + (predicted[:, 2:] - predicted[:, :2]).prod(1)
    iou = intersection / (areas - intersection)
    # Two boxes without area give 0/0, which is False here.
    matches = (iou >= min_iou) & (labels.unsqueeze(1) == prediction["labels"])
    # A prediction of score 0 is appended, which wins where none matches. So there is always a score, with a graph.
    best = F.pad(torch.where(matches, iou, -1), (0, 1)).argmax(1)
    return F.pad(prediction["scores"], (0, 1))[best]
