"""What a detector's head returns before non-maximum suppression: one tensor of boxes and scores, in one of three forms.

Reads boxes and scores from that tensor for the target ``detection``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .outputs import describe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BOX_FORMATS", "HEADS", "DensePredictions", "dense_output", "read_predictions"]

BOX_FORMATS = ("cxcywh", "xyxy")


class Head(NamedTuple):
    """How a head arranges its output.

    Attributes:
        axis: of the columns; the other one is that of the predictions.
        box_format: of the first four columns.
        classes_at: the first column with the score of a class; None if each prediction has one score and one label.
        form: of its output, for messages.
    """

    axis: int
    box_format: str
    classes_at: int | None
    form: str


HEADS = {
    "yolov8": Head(1, "cxcywh", 4, "(B,4+classes,N)"),
    "yolov5": Head(2, "cxcywh", 5, "(B,N,5+classes)"),
    "yolov10": Head(2, "xyxy", None, "(B,N,6)"),
}


class DensePredictions(NamedTuple):
    """N predictions of each image.

    Attributes:
        boxes: (B,N,4) as x1, y1, x2, y2.
        scores: (B,C,N), of every class; or (B,N), of the label.
        labels: (B,N); None where every class has a score.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor | None


def dense_output(output: Any) -> Tensor | None:
    """The tensor (B,...,...) of predictions in a detector's output: alone, or first in a tuple; None if it has none."""
    while isinstance(output, (list, tuple)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) and output.dim() == 3 and output.is_floating_point() else None


def read_predictions(output: Tensor, head: str | None, box_format: str | None, classes: int | None) -> DensePredictions:
    """Boxes and scores of a head's output.

    Raises:
        ValueError: the output does not have the form of the head, or may have that of several.
    """
    chosen = HEADS[_head_of(output) if head is None else head]
    columns = output.to(torch.promote_types(output.dtype, torch.float32)).movedim(chosen.axis, 2)
    count = columns.shape[2]
    first = chosen.classes_at
    needed = 6 if first is None else first + (1 if classes is None else classes)
    if count < needed:
        raise ValueError(
            f"detection got predictions of {describe(output)}, with {count} columns as {chosen.form}; expected at "
            f"least {needed}; say with head= and classes= what they are"
        )
    boxes = columns[..., :4].detach()
    if (box_format or chosen.box_format) == "cxcywh":
        centre, sides = boxes.split(2, 2)
        boxes = torch.cat([centre - sides / 2, centre + sides / 2], 2)
    if first is None:
        return DensePredictions(boxes, columns[..., 4], columns[..., 5].detach())
    scores = columns[..., first : None if classes is None else first + classes]
    if first == 5:
        scores = scores * columns[..., 4:5]
    return DensePredictions(boxes, scores.transpose(1, 2), None)


def _head_of(output: Tensor) -> str:
    columns, predictions = output.shape[1:]
    # The other heads have at least six columns.
    if columns > predictions >= 6:
        raise ValueError(
            f"detection got predictions of {describe(output)}, which is no (B,4+classes,N) with more predictions than "
            "columns; say what it is: head='yolov5' for (B,N,5+classes), 'yolov10' for (B,N,6) of x1, y1, x2, y2, "
            "score and label, 'yolov8' for (B,4+classes,N) all the same"
        )
    return "yolov8"
