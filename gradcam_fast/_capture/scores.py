"""From what a model returns to the scores to explain: picking the logits, checking and applying targets.

Everything stays on the device. Knows nothing of layers, gradients or maps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..ops.arguments import is_integer

if TYPE_CHECKING:
    from torch import Tensor


def pick_logits(output: Any, picker: Callable[[Any], Tensor] | None) -> Any:
    """The logits in a model's output: ``picker(output)``, or the obvious tensor.

    Raises:
        TypeError: no tensor is the obvious one; the message lists the members.
    """
    if picker is not None:
        return picker(output)
    if isinstance(output, torch.Tensor):
        return output
    named = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
    for name in ("logits", "out"):
        found = getattr(output, name, None) if name not in named else named[name]
        if isinstance(found, torch.Tensor):
            return found
    members = dict(output) if isinstance(output, Mapping) else dict(enumerate(output)) if _is_list(output) else named
    tensors = [member for member in members.values() if isinstance(member, torch.Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    raise TypeError(
        f"the model returned {_describe(output, members)}, in which no member is obviously the logits; "
        "say which with output=lambda out: ..., or give a callable target such as those of gradcam_fast.targets"
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

    Returns None, an int, an integer tensor (B,) or (B,K), or the callable, that of a list of them.
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
        return _one_each(target, batch)
    if isinstance(target, (bool, str)) or not isinstance(target, (int, torch.Tensor, Sequence)):
        if hasattr(target, "__array__"):
            return check_target(_tensor_of(target), None, batch)
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
        target = _tensor_of(target)
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(f"target has dtype {target.dtype}; give integer class indices")
    if target.dim() == 0:
        target = target.expand(batch)
    if target.dim() not in (1, 2) or target.shape[0] != batch or 0 in target.shape[1:]:
        raise ValueError(
            f"target has shape {tuple(target.shape)} for a batch of {batch}; expected ({batch},), one class per image, "
            f"or ({batch}, K), K classes per image"
        )
    return target.long()


def _one_each(functions: Sequence[Any], batch: int) -> Callable[[Any], Tensor]:
    """Functions for one image each as one for the batch."""
    if len(functions) != batch or not all(map(callable, functions)):
        raise ValueError(
            f"target lists {sum(map(callable, functions))} functions and {len(functions)} targets for a batch of "
            f"{batch}; give one function for each image, or one for the whole batch"
        )

    def scores(output: Any) -> Tensor:
        # Detectors return a list, one dict for each image.
        images = output if isinstance(output, list) else pick_logits(output, None)
        if len(images) != batch:
            raise ValueError(
                f"the logits are of {len(images)} images, and the targets of {batch}; pick with output=..."
            )
        each = [function(image) for function, image in zip(functions, images, strict=True)]
        for found in each:
            if not isinstance(found, torch.Tensor) or found.numel() != 1:
                what = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
                raise TypeError(f"a target of one image returned {what}; it must return one number, a tensor")
        return torch.stack([found.reshape(()) for found in each])

    return scores


def _tensor_of(target: Any) -> Tensor:
    try:
        return torch.as_tensor(target)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"target={target!r} is not a rectangular list of class indices ({error}); give B indices, or B lists of K"
        ) from None


def score(logits: Any, target: Any, topk: int | None, batch: int) -> tuple[Tensor, Tensor | None]:
    """The scores to explain, (B,) or (B,K), and the classes they belong to (None for a callable's).

    A class of a device tensor that is out of range cannot be refused without waiting for the device; its score is
    NaN and its gradient zero, so that its map is zeros and not valid.
    """
    if callable(target):
        return _called(target, logits, batch), None
    classes = as_classes(logits, batch)
    count = classes.shape[1]
    if topk is not None:
        if topk > count:
            raise ValueError(f"topk={topk} exceeds the model's {count} classes; ask for at most {count}")
        scores, chosen = classes.topk(topk, dim=1)
        return scores, chosen
    if target is None:
        scores, chosen = classes.max(1)
        return scores, chosen
    if isinstance(target, int):
        _check_range(target, target, count)
        chosen = torch.full((batch,), target, device=classes.device)
    elif target.device.type == "cpu":
        if batch:
            _check_range(int(target.min()), int(target.max()), count)
        chosen = target.to(classes.device, non_blocking=True, copy=True)
    else:
        chosen = target.to(classes.device, copy=True)
        known = (chosen >= 0) & (chosen < count)
        return torch.where(known, _take(classes, chosen.clamp(0, count - 1)), torch.nan), chosen
    return _take(classes, chosen), chosen


def _take(classes: Tensor, chosen: Tensor) -> Tensor:
    if chosen.dim() == 2:
        return classes.gather(1, chosen)
    return classes.gather(1, chosen.unsqueeze(1)).squeeze(1)


def as_classes(logits: Any, batch: int) -> Tensor:
    """Logits as (B,N): trailing singleton dimensions are dropped, and a model with one output per image has N = 1."""
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


def _check_range(low: int, high: int, count: int) -> None:
    wrong = low if low < 0 else high
    if not 0 <= wrong < count:
        raise ValueError(f"target {wrong} is out of range for a model with {count} classes (0 to {count - 1})")


def _called(target: Callable[[Any], Tensor], output: Any, batch: int) -> Tensor:
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


def detached(output: Any) -> Any:
    """A model's output with every tensor in it detached, in the same containers."""
    return with_tensors(output, torch.Tensor.detach)


def with_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A model's output with every tensor ``t`` in it replaced by ``change(t)``, in the same containers."""
    if isinstance(output, torch.Tensor):
        return change(output)
    if isinstance(output, MutableMapping):
        changed = copy.copy(output)
        for key, value in output.items():
            changed[key] = with_tensors(value, change)
        return changed
    if isinstance(output, (tuple, list)):
        members = [with_tensors(value, change) for value in output]
        return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)
    if hasattr(output, "__dict__"):
        changed = copy.copy(output)
        vars(changed).update({k: change(v) for k, v in vars(output).items() if isinstance(v, torch.Tensor)})
        return changed
    return output
