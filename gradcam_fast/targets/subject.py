"""What a ready target is about: its classes, and the objects or regions in the image; pictures show these."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["about", "subject_of"]

Function = TypeVar("Function", bound=Callable[..., Any])


def about(
    score: Function,
    *,
    classes: Any = None,
    objects: Tensor | None = None,
    masks: Tensor | None = None,
    follows_prediction: bool = False,
) -> Function:
    """The score function, with a note of what it is about.

    Args:
        classes: an index, K of them, or (B,K).
        objects: (B,K,4) boxes, x1, y1, x2, y2 in pixels of the model's input.
        masks: (H,W), (B,H,W) or (B,K,H,W) booleans over the whole input.
        follows_prediction: whether logits decide by their values which of them are scored: the layer found is then one
            that all of them depend on.
    """
    score.follows_prediction = follows_prediction  # type: ignore[attr-defined]
    score.subject = {"classes": classes, "objects": objects, "masks": masks}  # type: ignore[attr-defined]
    return score


def subject_of(target: Any, batch: int, sides: tuple[int, ...]) -> dict[str, Tensor] | None:
    """What a target is about, for every image of a batch, on the CPU; None if that is not known.

    Returns:
        ``classes`` (B,K); ``objects`` (B,K,4) as shares of the input's sides, and ``masks`` (B,K or 1,H,W), where there
        are any.
    """
    noted = getattr(target, "subject", None)
    if noted is None or len(sides) != 2:
        return None
    subject: dict[str, Tensor] = {}
    if (classes := noted["classes"]) is not None:
        indices = torch.as_tensor(classes, device="cpu", dtype=torch.long)
        subject["classes"] = indices.reshape(1, 1) if indices.dim() == 0 else indices.reshape(-1, indices.shape[-1])
    if (objects := noted["objects"]) is not None:
        height, width = sides
        subject["objects"] = objects.cpu().float() / torch.tensor(
            [width, height, width, height], dtype=torch.float32, device="cpu"
        )
    if (masks := noted["masks"]) is not None:
        masks = masks.cpu()
        subject["masks"] = masks[None, None] if masks.dim() == 2 else masks[:, None] if masks.dim() == 3 else masks
    if any(len(value) not in (1, batch) for value in subject.values()):
        return None
    return {name: value.expand(batch, *value.shape[1:]) for name, value in subject.items()}
