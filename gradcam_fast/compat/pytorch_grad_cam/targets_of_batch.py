"""The targets of a batch as pytorch-grad-cam's users give them, one for each image, and as gradcam_fast takes them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .utils.model_targets import ClassifierOutputTarget

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_targets", "highest_logits", "scores_of_batch"]


def check_targets(targets: Any, images: Tensor) -> list[Any] | None:
    """One target for each image, as callables; class indices become those of old releases' ``target_category``.

    Targets beyond the batch are left out: loops that make them once have them left in the last batch.

    Raises:
        TypeError: no list.
        ValueError: there are fewer than images.
    """
    batch = len(images)
    if targets is None:
        return None
    if isinstance(targets, int) and not isinstance(targets, bool):
        targets = [targets] * batch
    if callable(targets) or not hasattr(targets, "__len__"):
        raise TypeError(
            f"targets={targets!r} is a {type(targets).__name__}; give a list with one target for each image, such as "
            "[ClassifierOutputTarget(281)]"
        )
    if len(targets) < batch:
        raise ValueError(f"targets has {len(targets)} targets for {batch} images; give one for each image")
    return [target if callable(target) else ClassifierOutputTarget(target) for target in targets[:batch]]


def scores_of_batch(targets: Sequence[Any] | Callable[[Any], Sequence[Any]] | None, *, call: bool = False) -> Any:
    """``target=`` of gradcam_fast for such a list, or for a function from the model's output to such a list.

    Args:
        call: whether targets of classes are called, too, with what the model returned for their image: its first
            member for the first image, as of a tuple.
    """
    if targets is None:
        return None
    if callable(targets):
        return lambda outputs: _scores(outputs, targets(outputs))
    if call:
        return lambda outputs: _scores(outputs, targets)
    classes = [_class_index(target) for target in targets]
    return list(targets) if None in classes else torch.tensor(classes)


def highest_logits(outputs: Any) -> list[ClassifierOutputTarget] | None:
    """A target for each image's highest logit; None if the output is no logits (B,N)."""
    if not isinstance(outputs, torch.Tensor) or outputs.dim() < 2:
        return None
    return [ClassifierOutputTarget(category) for category in outputs.detach().argmax(-1).tolist()]


def _scores(outputs: Any, targets: Sequence[Any]) -> Tensor:
    scores = [target(output) for target, output in zip(targets, outputs, strict=False)]
    if several := [tuple(score.shape) for score in scores if score.numel() != 1]:
        raise TypeError(f"a target of one image returned shape {several[0]}; it must return one number, a tensor")
    return torch.stack([score.reshape(()) for score in scores])


def _class_index(target: Any) -> int | None:
    """The index, if the target is the logit of a class that is counted from the front."""
    if type(target) is not ClassifierOutputTarget:
        return None
    try:
        category = operator.index(target.category)
    except (TypeError, RuntimeError):
        return None
    return category if category >= 0 else None
