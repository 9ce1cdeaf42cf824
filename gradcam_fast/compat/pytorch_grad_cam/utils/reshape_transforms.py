"""From what layers of transformers and detectors return to maps (B,C,h,w)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fasterrcnn_reshape_transform", "swinT_reshape_transform", "vit_reshape_transform"]


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """Tokens (B,1+h*w,C), of which the first is the class token, as (B,C,h,w)."""
    return tensor[:, 1:].unflatten(1, (height, width)).movedim(-1, 1)


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """Tokens (B,h*w,C) as (B,C,h,w)."""
    return tensor.unflatten(1, (height, width)).movedim(-1, 1)


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """The absolute values of all levels of a feature pyramid, resized to that named ``pool`` and concatenated."""
    size = x["pool"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], dim=1)
