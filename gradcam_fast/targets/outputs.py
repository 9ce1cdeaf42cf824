"""From a model's output to scores: picks rows, columns, means over masks and cosines for the ready targets.

Also checks the arguments that the ready targets share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from .._capture.scores import pick_logits
from ..ops.arguments import is_integer

if TYPE_CHECKING:
    from torch import Tensor

    Indices = int | Sequence[int]

__all__ = [
    "as_rows", "as_tensor", "check_indices", "cosines", "describe", "drop_single", "floating_logits", "mean_over",
    "pick",
]  # fmt: skip


def check_indices(name: str, indices: Any) -> None:
    """Raise TypeError or ValueError unless ``indices`` is an integer from 0, or a list of such integers."""
    several = indices if isinstance(indices, Sequence) and not isinstance(indices, str) else [indices]
    if not several or not all(map(is_integer, several)):
        raise TypeError(f"{name}={indices!r} is a {type(indices).__name__}; give an integer, or a list of integers")
    if min(several) < 0:
        raise ValueError(f"{name} {min(several)} is negative; give integers from 0")


def as_tensor(name: str, value: Any, expected: str) -> Tensor:
    """``value`` as a tensor without a graph; ``expected`` ends the message of the TypeError."""
    try:
        # Lists go to the CPU, whatever the default device is.
        return torch.as_tensor(value, device=getattr(value, "device", "cpu")).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is a {type(value).__name__} that makes no tensor; give {expected}") from None


def describe(tensor: Tensor) -> str:
    """A tensor's dtype and shape, for messages."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}".removeprefix("torch.")


def floating_logits(output: Any) -> Tensor:
    """The logits in a model's output; TypeError unless they are floating."""
    logits: Tensor = pick_logits(output, None)
    if not logits.is_floating_point():
        raise TypeError(f"the model returned {describe(logits)}; expected floating scores; pick them with output=")
    return logits


def as_rows(output: Any) -> Tensor:
    """A model's output as (B,N), at least float32: singleton dimensions after N are dropped, and (B,) becomes (B,1)."""
    logits = floating_logits(output)
    if logits.dim() == 0 or logits.shape[2:].numel() != 1:
        raise ValueError(
            f"the model returned {describe(logits)}; this target expects (B,N); pick or pool it with output="
        )
    return _at_least_float32(logits.reshape(len(logits), logits.shape[1] if logits.dim() > 1 else 1))


def pick(name: str, values: Tensor, indices: Indices) -> Tensor:
    """The K columns of ``values`` (B,N,...) at the indices, (B,K,...), at least float32; K is 1 for one integer."""
    several = indices if isinstance(indices, Sequence) else [indices]
    if max(several) >= values.shape[1]:
        raise ValueError(f"{name} {max(several)} is out of range for {values.shape[1]} (0 to {values.shape[1] - 1})")
    # Not values[:, several]: the host would wait until the list is on the device.
    return _at_least_float32(torch.stack([values[:, int(index)] for index in several], 1))


def drop_single(indices: Indices, scores: Tensor) -> Tensor:
    """Scores (B,K) as they are for a list of indices, (B,) for one integer."""
    return scores if isinstance(indices, Sequence) else scores[:, 0]


def mean_over(mask: Tensor, values: Tensor) -> Tensor:
    """The mean (B,K) of ``values`` (B,K,h,w) over a mask (H,W), (B,H,W) or (B,K,H,W) of any resolution.

    The weight of a position is the share of its pixels that are in the mask. The mean over an empty mask is 0.
    """
    batch, count, *size = values.shape
    leading = mask.shape[: max(0, mask.dim() - len(size))]
    if mask.dim() < len(size) or leading not in ((), (batch,), (batch, count)):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} for {batch} images, {count} categories and logits {tuple(size)}; "
            f"give (H,W) for every image, ({batch},H,W), or ({batch},{count},H,W)"
        )
    share = mask.to(values.device, non_blocking=True).to(values.dtype)
    share = F.interpolate(share.reshape(*(*leading, 1, 1)[:2], *mask.shape[len(leading) :]), size, mode="area")
    total = share.flatten(2).sum(2)
    return (values * share).flatten(2).sum(2) / torch.where(total > 0, total, 1)


def cosines(vectors: Tensor, references: Tensor) -> Tensor:
    """The cosines of the angles between vectors (B,D) and references (D,), (K,D) or (B,K,D): (B,) or (B,K).

    The vectors' lengths are not differentiated. The cosine of a zero vector is 0.
    """
    batch, length = vectors.shape
    if references.shape[-1] != length or (references.dim() == 3 and len(references) != batch):
        raise ValueError(
            f"embedding has shape {tuple(references.shape)} but the model returned {tuple(vectors.shape)}; "
            f"give ({length},), (K,{length}) or ({batch},K,{length})"
        )
    norm = vectors.detach().norm(dim=1, keepdim=True)
    units = vectors / torch.where(norm > 0, norm, 1)
    directions = F.normalize(references.to(vectors, non_blocking=True), dim=-1)
    return ((units if references.dim() == 1 else units.unsqueeze(1)) * directions).sum(-1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
