"""Type aliases of the public arguments, as help and editors show them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

__all__ = ["Call", "HeatmapSize", "Images", "Layer", "Names", "Output", "Size", "Target", "Tokens", "When"]

Images: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""(B,C,H,W), (C,H,W) or clips (B,T,C,H,W); a tuple or dict when the model has several inputs."""

Target: TypeAlias = int | str | Tensor | Sequence[Any] | Callable[[Any], Tensor] | None
"""A class or its name, (B,) or (B,K) classes, a callable from the output to scores, or None (the highest logit)."""

Layer: TypeAlias = str | nn.Module | Sequence[str | nn.Module] | None
"""A dotted name, a module of the model, a list of these, or None (found automatically)."""

Call: TypeAlias = int | Literal["all"] | None
"""0 for a layer's first call in a forward, -1 for its last, "all", or None (the last one that sees the images)."""

Size: TypeAlias = int | Sequence[int]
"""(H,W) in pixels, or one integer for all sides."""

HeatmapSize: TypeAlias = Size | Literal["original"]
"""(H,W) in pixels, one integer for all sides, or "original": that of the photos."""

Names: TypeAlias = str | os.PathLike[str] | Sequence[str] | Mapping[int, str] | Mapping[str, str] | Any
"""A list of class names, a dict from class index to name, a file, torchvision's weights, or a model with names."""

Output: TypeAlias = Callable[[Any], Tensor]
"""A callable that picks the logits from what the model returns."""

Tokens: TypeAlias = str | tuple[int, ...] | Callable[[Tensor], Tensor]
"""The word "auto", the grid (h,w) of the patch tokens, or a callable from a layer's output to (B,C,h,w)."""

When: TypeAlias = Callable[[Any], Tensor]
"""A callable from the logits to booleans (B,): which images are explained."""
