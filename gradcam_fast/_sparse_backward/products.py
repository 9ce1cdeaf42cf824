"""Products of a gradient and a matrix, or a batch of matrices.

Each gives None where the blocks do not go with it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..ops import skinny_mm
from .blocks import Block, Blocks, Outer, added, axes_of, cut, lengths, longer_than_one, on, squeezed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FEW"]

# Up to how many rows of a gradient are multiplied as rows and columns; above, that is no less work than numbers.
FEW = 8


@on("mm.default")
def _mm(operation: Any, gradient: Tensor, matrix: Tensor) -> Blocks | None:
    return _rows_times(gradient, matrix) if isinstance(gradient, Blocks) and not isinstance(matrix, Blocks) else None


def _rows_times(gradient: Blocks, matrix: Tensor) -> Blocks:
    rows, columns = gradient.axes
    out = axes_of(matrix.shape[1:])
    blocks = []
    for block in gradient.blocks:
        of_rows, of_columns = block.ranges[: len(rows)], block.ranges[len(rows) :]
        some = cut(matrix.reshape(1, *columns, matrix.shape[1]), of_columns)[0]
        values = block.values
        product = _outer_times(values, some, len(rows)) if isinstance(values, Outer) else _times(values, some)
        shape = -1, *lengths(rows, of_rows), *out[0]
        blocks.append(Block((*of_rows, *[None] * len(out[0])), product.reshape(shape)))
    return added((rows, *out), blocks)


@on("bmm.default")
def _bmm(operation: Any, one: Tensor, other: Tensor) -> Blocks | None:
    if isinstance(one, Blocks) and isinstance(other, Blocks):
        return None
    if isinstance(other, Blocks):
        return _few_columns_times(one, other)
    assert isinstance(one, Blocks)
    batch, rows, columns = one.axes
    if other.stride(0) == 0:
        # One matrix for all, as linear layers have it whose parameters need no gradient.
        product = _rows_times(Blocks([batch + rows, columns], one.blocks), other[0])
        return Blocks([batch, rows, *product.axes[1:]], product.blocks)
    out = axes_of(other.shape[2:])
    blocks = []
    for block in one.blocks:
        of_batch, of_rows = block.ranges[: len(batch)], block.ranges[len(batch) : len(batch + rows)]
        of_columns = block.ranges[len(batch + rows) :]
        matrices = cut(other.reshape(1, *batch, *columns, other.shape[2]), of_batch + of_columns)
        count, width = (math.prod(lengths(*each)) for each in ((batch, of_batch), (columns, of_columns)))
        values = block.numbers().reshape(-1, count, math.prod(lengths(rows, of_rows)), width)
        # The rows of all targets side by side: each matrix is read once.
        together = values.transpose(0, 1).flatten(1, 2)
        product = torch.bmm(together, matrices.reshape(count, width, -1)).unflatten(1, (len(values), -1))
        shape = -1, *lengths(batch + rows, of_batch + of_rows), *out[0]
        ranges = (*of_batch, *of_rows, *[None] * len(out[0]))
        blocks.append(Block(ranges, product.transpose(0, 1).reshape(shape)))
    return added([batch, rows, *out], blocks)


def _few_columns_times(matrices: Tensor, gradient: Blocks) -> Blocks | None:
    """(D,P,N) times (D,N,C), of which some of the N rows have a gradient; if they are few, columns times rows."""
    batch, rows, columns = gradient.axes
    axis, out = len(batch), axes_of(matrices.shape[1:2])[0]
    blocks = []
    for block in gradient.blocks:
        some = block.ranges[axis] if len(rows) == 1 else None
        if some is None:
            return None
        ranges = (*block.ranges[:axis], *[None] * len(out), *block.ranges[axis + 1 :])
        there = cut(matrices.reshape(1, *batch, *out, rows[0]).movedim(-1, axis + 1), block.ranges[: axis + 1])
        left = there.movedim(axis + 1, -1)
        right = block.numbers().movedim(axis + 1, -1)
        for _ in columns:
            left = left.unsqueeze(-2)
        for _ in out:
            right = right.unsqueeze(axis + 1)
        product = Outer(left, right)
        blocks.append(Block(ranges, product if some[1] <= FEW else product.multiplied()))
    return added([batch, out, columns], blocks)


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """(K, rows, columns) times (columns, M), where rows and columns may be several axes each."""
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return skinny_mm.mm(values.reshape(-1, len(matrix)), matrix)


def _outer_times(values: Outer, matrix: Tensor, rows: int) -> Tensor:
    """The same of a product of two: one of them times the matrix, and that times the other, if that is less work."""
    sizes = torch.broadcast_shapes(values.left.shape, values.right.shape)
    rank, out = rank_out = len(sizes) - 1, len(sizes)
    columns = {axis + rows + 1 for axis in longer_than_one(matrix)}
    left, right = (set(longer_than_one(each)) for each in values)

    def multiplications(*factors: set[int]) -> int:
        return math.prod(sizes[axis] for axis in set().union(*factors))

    def kept(first: set[int], second: set[int]) -> set[int]:
        return {axis for axis in first | columns if axis <= rows or axis in second}

    def work(first: set[int], second: set[int]) -> int:
        return sizes[rank] * (multiplications(first, columns) + multiplications(kept(first, second), second))

    orders = [(left, right, *values), (right, left, *values[::-1])]
    first, second, one, other = min(orders, key=lambda order: work(*order[:2]))
    if work(first, second) > multiplications(left, right, columns):
        return _times(values.multiplied(), matrix)
    between = sorted(kept(first, second))
    product = torch.einsum(
        squeezed(one), [*sorted(first), rank], squeezed(matrix), [*sorted(columns), out], [*between, *rank_out]
    )
    rest = sorted(axis for axis in left | right if axis <= rows)
    return torch.einsum(squeezed(other), [*sorted(second), rank], product, [*between, *rank_out], [*rest, out])
