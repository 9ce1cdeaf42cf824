"""Boxes that were asked about, and the predictions of a detector that match them best.

Knows nothing of models or of what is done with the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_references", "matching_scores"]

_EXPECTED = "give boxes (K,4) and integer labels (K,) for one image, or lists of them with one of each per image"
_MEMBERS = {"boxes", "labels", "scores"}


def as_references(boxes: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Boxes (B,K,4) and labels (B,K) from (K,4) and (K,) of one image, or from a list of these; the fewer are padded.

    Raises:
        TypeError, ValueError: no boxes x1, y1, x2, y2, or no integer label for each.
    """
    places, names = _per_image("boxes", boxes, 2), _per_image("labels", labels, 1)
    shapes = [tuple(each.shape) for each in places], [tuple(each.shape) for each in names]
    if shapes[0] != [(*shape, 4) for shape in shapes[1]] or not any(map(len, names)):
        raise ValueError(f"boxes have shapes {shapes[0]} and labels {shapes[1]}, image by image; {_EXPECTED}")
    if any(each.is_floating_point() or each.dtype == torch.bool for each in names):
        raise TypeError(f"labels have dtype {names[0].dtype}; {_EXPECTED}")
    # On another device the host would have to wait for the answer.
    if any(each.device.type == "cpu" and (each[:, 2:] < each[:, :2]).any() for each in places):
        raise ValueError("a box ends before it begins; give x1, y1, x2, y2, not a corner with width and height")
    # Padding has no area, so that nothing overlaps it.
    return pad_sequence(places, batch_first=True).float(), pad_sequence(names, batch_first=True)


def _per_image(name: str, values: Any, dims: int) -> list[Tensor]:
    try:
        rows = [torch.as_tensor(each).detach() for each in values]
        return [torch.stack(rows)] if rows and rows[0].dim() == dims - 1 else rows
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is a {type(values).__name__} that makes no tensors; {_EXPECTED}") from None


def matching_scores(output: Any, references: tuple[Tensor, Tensor], min_iou: float) -> Tensor:
    """For each box of each image the score (B,K) of the prediction of its label that overlaps it most; 0 for none.

    Raises:
        TypeError, ValueError: not a dict of boxes, labels and scores for each image that has references.
    """
    images = output if isinstance(output, (list, tuple)) else []
    if not images or not all(isinstance(found, Mapping) and found.keys() >= _MEMBERS for found in images):
        raise TypeError(
            f"detection got a {type(output).__name__}; expected one dict of boxes, labels and scores per image, as "
            "torchvision's detectors return after model.eval(); bring other outputs into this form with output=..."
        )
    if len(images) != len(references[0]):
        raise ValueError(
            f"boxes are given for a batch of {len(references[0])} but the model returned {len(images)} predictions; "
            "give a list with the boxes (K,4) of each image, and one with their labels"
        )
    device = images[0]["scores"].device
    boxes, labels = (each.to(device, non_blocking=True) for each in references)
    return torch.stack([_matching(*each, min_iou) for each in zip(images, boxes, labels, strict=True)])


def _matching(found: Mapping[str, Tensor], boxes: Tensor, labels: Tensor, min_iou: float) -> Tensor:
    # The boxes choose, and only the scores take part in the gradient.
    ours, theirs = boxes.unsqueeze(1), found["boxes"].detach().float()
    sides = torch.minimum(ours[..., 2:], theirs[:, 2:]) - torch.maximum(ours[..., :2], theirs[:, :2])
    shared = sides.clamp(min=0).prod(2)
    overlap = shared / ((ours[..., 2:] - ours[..., :2]).prod(2) + (theirs[:, 2:] - theirs[:, :2]).prod(1) - shared)
    # False too for the 0/0 of two boxes without area.
    matches = (overlap >= min_iou) & (labels.unsqueeze(1) == found["labels"])
    # Behind the predictions stands one of nothing, of score 0, better than all that do not match: so there is always
    # one, and the score has a graph.
    best = F.pad(torch.where(matches, overlap, -1), (0, 1)).argmax(1)
    return F.pad(found["scores"], (0, 1))[best]
