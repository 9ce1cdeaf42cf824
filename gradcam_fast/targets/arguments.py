"""What ready targets do with their arguments and with a model's output: checks, rows, columns, means, cosines.

Knows nothing of tasks; every refusal is one sentence that says what came, what was expected and what to do.
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

__all__ = ["as_asked", "as_tensor", "check_indices", "columns", "cosines", "floating", "kind", "mean_over", "rows"]


def check_indices(name: str, asked: Any) -> None:
    """Raise unless ``asked`` is an index or a list of them."""
    each = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
    if not each or not all(map(is_integer, each)):
        raise TypeError(f"{name}={asked!r} is a {type(asked).__name__}; give an integer, or a list of integers")
    if min(each) < 0:
        raise ValueError(f"{name} {min(each)} is negative; give integers from 0")


def as_tensor(name: str, given: Any, expected: str) -> Tensor:
    """``given`` as a tensor without a graph."""
    try:
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is a {type(given).__name__} that makes no tensor; give {expected}") from None


def kind(tensor: Tensor) -> str:
    """How a message names a tensor."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}".removeprefix("torch.")


def floating(output: Any) -> Tensor:
    """The logits in what a model returned, if they are floating."""
    logits: Tensor = pick_logits(output, None)
    if not logits.is_floating_point():
        raise TypeError(f"the model returned {kind(logits)}; expected floating scores; pick them with output=")
    return logits


def rows(output: Any) -> Tensor:
    """What a model returned as (B,N), at least float32; trailing singleton dimensions are dropped, (B,) is (B,1)."""
    logits = floating(output)
    if logits.dim() == 0 or logits.shape[2:].numel() != 1:
        raise ValueError(f"the model returned {kind(logits)}; this target expects (B,N); pick or pool it with output=")
    return _accurate(logits.reshape(len(logits), logits.shape[1] if logits.dim() > 1 else 1))


def columns(name: str, values: Tensor, asked: Indices) -> Tensor:
    """``values`` (B,N,...) at the K indices asked for, (B,K,...), at least float32; K is 1 for a single index."""
    each = asked if isinstance(asked, Sequence) else [asked]
    if max(each) >= values.shape[1]:
        raise ValueError(f"{name} {max(each)} is out of range for {values.shape[1]} (0 to {values.shape[1] - 1})")
    # Not values[:, each]: the host would wait until the list is on the device.
    return _accurate(torch.stack([values[:, int(index)] for index in each], 1))


def as_asked(asked: Indices, scores: Tensor) -> Tensor:
    """Scores (B,K) as they are for a list of indices, (B,) for a single one."""
    return scores if isinstance(asked, Sequence) else scores[:, 0]


def mean_over(mask: Tensor, values: Tensor) -> Tensor:
    """The mean (B,K) of ``values`` (B,K,h,w) over a mask (H,W), (B,H,W) or (B,K,H,W) of any resolution.

    Each position counts by the share of the pixels it covers that are in the mask; the mean over nothing is 0.
    """
    batch, count, *size = values.shape
    several = mask.shape[: max(0, mask.dim() - len(size))]
    if mask.dim() < len(size) or several not in ((), (batch,), (batch, count)):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} for {batch} images, {count} categories and logits {tuple(size)}; "
            f"give (H,W) for every image, ({batch},H,W), or ({batch},{count},H,W)"
        )
    share = mask.to(values.device, non_blocking=True).to(values.dtype)
    share = F.interpolate(share.reshape(*(*several, 1, 1)[:2], *mask.shape[len(several) :]), size, mode="area")
    covered = share.flatten(2).sum(2)
    return (values * share).flatten(2).sum(2) / torch.where(covered > 0, covered, 1)


def cosines(vectors: Tensor, references: Tensor) -> Tensor:
    """The cosines between vectors (B,D), whose length has no part in the gradient, and (D,), (K,D) or (B,K,D).

    Of a vector without length they are 0.
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


def _accurate(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
