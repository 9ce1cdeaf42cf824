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

__all__ = ["is_skinny", "mm", "pays"]

# Numbers in a matrix, 16 MB of them: more than most processors keep in the cache of one core.
_LARGE = 1 << 22
# Threads share its columns, and each reads a row's piece at a time.
_WIDE = 1 << 10
# With more rows arithmetic decides, and not reading.
_FEW = 16


def pays(rows: int, sides: Sequence[int]) -> bool:
    """Whether the operator is there, and quicker than ``torch.mm`` for so many rows and a matrix of these sides."""
    return rows <= _FEW and math.prod(sides) >= _LARGE and sides[1] >= _WIDE and kernel_for("cpu")


def is_skinny(rows: Tensor, matrix: Tensor) -> bool:
    """Whether the operator will multiply them: (N,R) and (R,M), strided float32 on the CPU, and it pays."""
    plain = all(each.is_cpu and each.dtype == torch.float32 and each.layout is torch.strided for each in (rows, matrix))
    return plain and matrix.stride(1) == 1 and pays(len(rows), matrix.shape)


def mm(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows`` (N,R) times ``matrix`` (R,M), as ``torch.mm``.

    If it is skinny, rows of the matrix that meet only zeros are not read and count as zeros, and the bits are the same
    on any number of threads.

    Example:
        >>> import torch
        >>> from gradcam_fast.ops import skinny_mm
        >>> matrix = torch.rand(2048, 2048)
        >>> torch.equal(skinny_mm.mm(torch.eye(3, 2048), matrix), matrix[:3])
        True
    """
    if is_skinny(rows, matrix):
        return torch.ops.gradcam_fast.skinny_mm.default(rows, matrix)
    return torch.mm(rows, matrix)


def _fake(rows: Tensor, matrix: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], matrix.shape[1]))


load()
if kernel_for("cpu"):
    torch.library.register_fake("gradcam_fast::skinny_mm", _fake)
