"""The rivals of a class in the target ``finer``, those of the nearest logits or listed ones, and their mean logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .outputs import pick

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mean_of_listed", "mean_of_nearest"]


def mean_of_nearest(logits: Tensor, own: Tensor, places: Tensor, count: int, *, by_softmax: bool) -> Tensor:
    """The mean (B,K) of the ``count`` logits (B,N) that are nearest to a class's own, that class left out.

    Args:
        own: (B,K), the logits of the classes.
        places: (B,K), their indices.
        count: at most N - 1.
        by_softmax: whether the mean is weighted by the softmax of the logits it is of.
    """
    distances = (logits.detach().unsqueeze(1) - own.detach().unsqueeze(2)).abs()
    nearest = distances.scatter(2, places.unsqueeze(2), torch.inf).topk(count, dim=2, largest=False).indices
    rivals = logits.unsqueeze(1).expand(-1, own.shape[1], -1).gather(2, nearest)
    return (rivals.softmax(2) * rivals).sum(2) if by_softmax else rivals.mean(2)


def mean_of_listed(logits: Tensor, places: Tensor, listed: Sequence[int], *, by_softmax: bool) -> Tensor:
    """The same of listed classes; where one is the class itself it is left out, and the mean of none is 0."""
    rivals = pick("rivals", logits, listed).unsqueeze(1)
    others = torch.stack([places != rival for rival in listed], 2)
    weights = rivals.masked_fill(~others, -torch.inf).softmax(2).nan_to_num(0) if by_softmax else others.to(rivals)
    total = weights.sum(2)
    return (weights * rivals).sum(2) / torch.where(total > 0, total, 1)
