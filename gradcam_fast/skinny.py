"""The product of a few rows and a large matrix, by an operator of ours where it takes less time than PyTorch's.

What decides is how much of the matrix is read, and from how many places at a time. Knows nothing of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .backend import kernel_for, load

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_large", "skinny_mm"]

# Numbers in a matrix, 16 MB of them: more than most processors keep in a cache of one core.
_LARGE = 1 << 22
# With more rows arithmetic decides, and not reading.
_FEW = 16


def is_large(sides: Sequence[int]) -> bool:
    """Whether the product with a matrix of these sides may be left to :func:`skinny_mm`."""
    return math.prod(sides) >= _LARGE and kernel_for("cpu")


def skinny_mm(rows: Tensor, matrix: Tensor) -> Tensor | None:
    """``rows`` (N,R) times ``matrix`` (R,M), which is not read where all rows are zero; None for ``torch.mm`` to do.

    Columns are added up in the same order on any number of threads.

    Example:
        >>> import torch
        >>> from gradcam_fast.skinny import skinny_mm
        >>> matrix = torch.rand(2048, 2048)
        >>> product = skinny_mm(torch.eye(3, 2048), matrix)  # None without a compiled kernel
        >>> product is None or torch.equal(product, matrix[:3])
        True
        >>> skinny_mm(torch.rand(17, 2048), matrix) is None
        True
    """
    plain = all(each.is_cpu and each.dtype == torch.float32 and each.layout is torch.strided for each in (rows, matrix))
    if not (plain and len(rows) <= _FEW and is_large(matrix.shape) and matrix.stride(1) == 1):
        return None
    return torch.ops.gradcam_fast.skinny_mm.default(rows, matrix)


def _fake(rows: Tensor, matrix: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], matrix.shape[1]))


load()
if kernel_for("cpu"):
    torch.library.register_fake("gradcam_fast::skinny_mm", _fake)
