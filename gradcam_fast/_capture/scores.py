"""From what a model returns to the scores to explain: picks the logits, checks the target and applies it.

Everything stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..ops.arguments import is_integer

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Output

__all__ = ["as_class_logits", "check_range", "check_target", "in_range", "pick_logits", "scores_of"]


def pick_logits(output: Any, picker: Output | None) -> Any:
    """The logits in a model's output: ``picker(output)``, its ``logits`` or ``out``, or its only tensor.

    Raises:
        TypeError: several tensors may be the logits; the message lists them.
    """
    if picker is not None:
        return picker(output)
    if isinstance(output, torch.Tensor):
        return output
    named = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
    for name in ("logits", "out"):
        logits = getattr(output, name, None) if name not in named else named[name]
        if isinstance(logits, torch.Tensor):
            return logits
    members = dict(output) if isinstance(output, Mapping) else dict(enumerate(output)) if _is_list(output) else named
    tensors = [member for member in members.values() if isinstance(member, torch.Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    raise TypeError(
        f"the model returned {_describe(output, members)}; expected a tensor of logits, or one member named "
        "logits or out; pick the logits with output=lambda out: ..., or give a callable target such as those of "
        "gradcam_fast.targets"
    )


def _is_list(output: Any) -> bool:
    return isinstance(output, Sequence) and not isinstance(output, str)


def _describe(output: Any, members: Mapping[Any, Any]) -> str:
    shown = (
        f"{key!r}: {tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}"
        for key, value in members.items()
    )
    return f"a {type(output).__name__} ({', '.join(shown)})" if members else f"a {type(output).__name__}"


def check_target(target: Any, topk: int | None, batch: int) -> Any:
    """Refuse a target that cannot fit, before the model runs; lists become integer tensors.

    Returns:
        None, an int, an integer tensor (B,) or (B,K), or a callable; a list of B callables becomes one, and one row
        (1,K) the same K classes for every image.
    """
    if topk is not None:
        if target is not None:
            raise ValueError(f"both target={target!r} and topk={topk!r} were given; give one of them")
        if not is_integer(topk):
            raise TypeError(f"topk={topk!r} is a {type(topk).__name__}; give the number of targets, an integer")
        if topk < 1:
            raise ValueError(f"topk={topk} asks for no target; give an integer of at least 1")
        return None
    if target is None or callable(target):
        return target
    if isinstance(target, (list, tuple)) and any(map(callable, target)):
        return _one_callable(target, batch)
    if isinstance(target, (bool, str)) or not isinstance(target, (int, torch.Tensor, Sequence)):
        if hasattr(target, "__array__"):
            return check_target(_as_tensor(target), None, batch)
        raise TypeError(
            f"target={target!r} is a {type(target).__name__}; give a class index, a list or integer tensor of them "
            "with shape (B,) or (B,K), or a callable"
        )
    if isinstance(target, int):
        if target < 0:
            raise ValueError(f"target {target} is negative; classes are numbered from 0")
        return target
    if not isinstance(target, torch.Tensor):
        if not len(target):
            raise ValueError(f"target={target!r} names no class; give {batch} class indices, one per image")
        target = _as_tensor(target)
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(f"target has dtype {target.dtype}; give integer class indices")
    if target.dim() == 0:
        target = target.expand(batch)
    if target.dim() == 2 and len(target) == 1:
        target = target.expand(batch, -1)
    if target.dim() not in (1, 2) or target.shape[0] != batch or 0 in target.shape[1:]:
        raise ValueError(
            f"target has shape {tuple(target.shape)} for a batch of {batch}; expected ({batch},), one class per image, "
            f"or ({batch}, K), K classes per image; [[1, 2]] explains both classes for every image"
        )
    return target.long()


def _one_callable(functions: Sequence[Any], batch: int) -> Callable[[Any], Tensor]:
    """B callables, each from one image's output to its score, as one callable for the batch."""
    if len(functions) != batch or not all(map(callable, functions)):
        raise ValueError(
            f"target lists {len(functions)} targets, {sum(map(callable, functions))} of them functions, for a batch of "
            f"{batch}; give one function for each image, or one for the whole batch"
        )

    def scores(output: Any) -> Tensor:
        # Detectors return a list, one dict for each image.
        outputs = output if isinstance(output, list) else pick_logits(output, None)
        if len(outputs) != batch:
            raise ValueError(
                f"the output is of {len(outputs)} images, but target lists functions for {batch}; pick the part of the "
                "output that has one entry per image with output=..."
            )
        values = [function(image_output) for function, image_output in zip(functions, outputs, strict=True)]
        for value in values:
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                received = (
                    f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
                )
                raise TypeError(f"a target of one image returned {received}; it must return one number, a tensor")
        return torch.stack([value.reshape(()) for value in values])

    return scores


def _as_tensor(target: Any) -> Tensor:
    try:
        return torch.as_tensor(target, device="cpu")
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"target={target!r} is not a rectangular list of class indices ({error}); give B indices, or B lists of K"
        ) from None


def scores_of(
    logits: Any, target: Any, topk: int | None, batch: int, *, may_look: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The scores to explain, (B,) or (B,K), and their classes (None for a callable target).

    A class that is out of range in a device tensor cannot be refused without waiting for the device; its score is NaN
    and its gradient zero, so that its map is zeros and not valid.

    Args:
        may_look: whether the values of classes on the CPU may be looked at; in a trace they have none.
    """
    if callable(target):
        return _scores_by_callable(target, logits, batch), None
    class_logits = as_class_logits(logits, batch)
    count = class_logits.shape[1]
    if topk is not None:
        if topk > count:
            raise ValueError(f"topk={topk} exceeds the model's {count} classes; ask for at most {count}")
        scores, classes = class_logits.topk(topk, dim=1)
        return scores, classes
    if target is None:
        scores, classes = class_logits.max(1)
        return scores, classes
    if isinstance(target, int):
        check_range(target, target, count)
        classes = torch.full((batch,), target, dtype=torch.int64, device=class_logits.device)
    elif target.device.type == "cpu" and may_look:
        if batch:
            check_range(int(target.min()), int(target.max()), count)
        classes = target.to(class_logits.device, non_blocking=True, copy=True)
    else:
        classes = target.to(class_logits.device, copy=True)
        scores = _take(class_logits, classes.clamp(0, count - 1))
        return torch.where(in_range(classes, count), scores, torch.nan), classes
    return _take(class_logits, classes), classes


def in_range(classes: Tensor, count: int) -> Tensor:
    """Whether each class is one of ``count``."""
    return (classes >= 0) & (classes < count)


def _take(class_logits: Tensor, classes: Tensor) -> Tensor:
    if classes.dim() == 2:
        return class_logits.gather(1, classes)
    return class_logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def as_class_logits(logits: Any, batch: int) -> Tensor:
    """Logits as (B,N): trailing singleton dimensions are dropped, and N is 1 for a model with one output per image."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"the logits are a {type(logits).__name__}; let output= pick a tensor, or give a callable target"
        )
    shape = logits.shape
    if not logits.dtype.is_floating_point:
        raise TypeError(f"the logits have dtype {logits.dtype}; expected floating scores; pick them with output=...")
    if logits.dim() == 0 or shape[0] != batch or shape[2:].numel() != 1 or 0 in shape[1:]:
        raise ValueError(
            f"the logits have shape {tuple(shape)} for a batch of {batch}; expected ({batch}, classes) or one output "
            "per image; for anything else give a callable target that turns the output into (B,) scores, for example "
            "gradcam_fast.targets.segmentation(3), or lambda out: out[:, 3].mean((-2, -1))"
        )
    return logits.reshape(batch, shape[1] if logits.dim() > 1 else 1)


def check_range(low: int, high: int, count: int) -> None:
    """Refuse classes between ``low`` and ``high`` of which one is none of ``count``."""
    wrong = low if low < 0 else high
    if not 0 <= wrong < count:
        raise ValueError(f"target {wrong} is out of range for a model with {count} classes (0 to {count - 1})")


def _scores_by_callable(target: Callable[[Any], Tensor], output: Any, batch: int) -> Tensor:
    scores = target(output)
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"the callable target returned a {type(scores).__name__}; it must return a tensor of scores")
    if not scores.dtype.is_floating_point:
        raise TypeError(f"the callable target returned {scores.dtype}; it must return floating scores, not classes")
    if scores.dim() not in (1, 2) or scores.shape[0] != batch or 0 in scores.shape[1:]:
        raise ValueError(
            f"the callable target returned shape {tuple(scores.shape)} for a batch of {batch}; expected ({batch},) or "
            f"({batch}, K): one score per image and target"
        )
    return scores
