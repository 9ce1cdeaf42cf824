"""The product of a few rows and a large matrix, by an operator of this library where it is faster than ``torch.mm``.

Reading the matrix takes most of the time, so the operator does not read rows of the matrix that are multiplied by zeros
only.
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

# Elements of the smallest matrix: 16 MB, more than most processors keep in the cache of one core.
_MIN_ELEMENTS = 1 << 22
# Threads share the columns, and each reads a piece of one row at a time.
_MIN_COLUMNS = 1 << 10
# With more rows than this, the arithmetic takes longer than reading the matrix.
_MAX_ROWS = 16


def pays(rows: int, sides: Sequence[int]) -> bool:
    """Whether the operator is built, and faster than ``torch.mm`` for this number of rows and sides of the matrix."""
    return rows <= _MAX_ROWS and math.prod(sides) >= _MIN_ELEMENTS and sides[1] >= _MIN_COLUMNS and kernel_for("cpu")


def is_skinny(rows: Tensor, matrix: Tensor) -> bool:
    """Whether the operator runs for rows (N,R) and a matrix (R,M): strided float32 on the CPU, where this is faster."""
    fits = all(
        factor.is_cpu and factor.dtype == torch.float32 and factor.layout is torch.strided for factor in (rows, matrix)
    )
    # In a trace for any number of images, the number of rows is symbolic: torch.mm is right for all.
    return fits and isinstance(rows.shape[0], int) and matrix.stride(1) == 1 and pays(rows.shape[0], matrix.shape)


def mm(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows`` (N,R) times ``matrix`` (R,M), as ``torch.mm``.

    If ``is_skinny``, rows of the matrix that are multiplied by zeros only are not read, so that NaN and Inf there have
    no effect, and the bits are the same for any number of threads.

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
