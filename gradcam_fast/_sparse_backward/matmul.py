"""Products of a gradient and a matrix, or a batch of matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ..ops import skinny_mm
from .blocks import (
    Block,
    BlockGradient,
    OuterProduct,
    add_blocks,
    axes_longer_than_one,
    block_lengths,
    narrow_to,
    split_axes,
    squeeze_axes,
)
from .known_operations import Operation, backward_rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_RANK"]

# The largest rank of an outer product; above it, its factors are no less work than its values.
MAX_RANK = 8


@backward_rule("MmBackward0")
def _mm(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return _rows_times(gradient, operation.saved("mat2").t())


@backward_rule(
    "AddmmBackward0", applies=lambda operation: operation.used_inputs == [1] and operation.saved("alpha") == 1
)
def _addmm(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return _rows_times(gradient, operation.saved("mat2").t())


@backward_rule("BmmBackward0", applies=lambda operation: True)
def _bmm(operation: Operation, gradient: BlockGradient) -> tuple[BlockGradient | None, ...]:
    return (
        _batch_times(gradient, operation.saved("mat2").mT) if 0 in operation.used_inputs else None,
        _matrices_times(operation.saved("self").mT, gradient) if 1 in operation.used_inputs else None,
    )


def _rows_times(gradient: BlockGradient, matrix: Tensor) -> BlockGradient:
    """The gradient (N,R) times a matrix (R,M)."""
    rows, columns = gradient.axes
    out = split_axes(matrix.shape[1:])
    blocks = []
    for block in gradient.blocks:
        of_rows, of_columns = block.intervals[: len(rows)], block.intervals[len(rows) :]
        part = narrow_to(matrix.reshape(1, *columns, matrix.shape[1]), of_columns)[0]
        values = block.values
        product = _outer_times(values, part, len(rows)) if isinstance(values, OuterProduct) else _times(values, part)
        shape = -1, *block_lengths(rows, of_rows), *out[0]
        blocks.append(Block((*of_rows, *[None] * len(out[0])), product.reshape(shape)))
    return add_blocks((rows, *out), blocks)


def _batch_times(gradient: BlockGradient, matrices: Tensor) -> BlockGradient:
    """The gradient (D,N,R) times matrices (D,R,M)."""
    batch, rows, columns = gradient.axes
    if matrices.stride(0) == 0:
        # The matrices are one expanded matrix: a linear layer whose parameters need no gradient.
        product = _rows_times(BlockGradient([batch + rows, columns], gradient.blocks), matrices[0])
        return BlockGradient([batch, rows, *product.axes[1:]], product.blocks)
    out = split_axes(matrices.shape[2:])
    blocks = []
    for block in gradient.blocks:
        of_batch, of_rows = block.intervals[: len(batch)], block.intervals[len(batch) : len(batch + rows)]
        of_columns = block.intervals[len(batch + rows) :]
        part = narrow_to(matrices.reshape(1, *batch, *columns, matrices.shape[2]), of_batch + of_columns)
        count, width = (math.prod(block_lengths(*pair)) for pair in ((batch, of_batch), (columns, of_columns)))
        values = block.dense().reshape(-1, count, math.prod(block_lengths(rows, of_rows)), width)
        # The rows of all targets side by side, so that each matrix is read once.
        rows_of_all_targets = values.transpose(0, 1).flatten(1, 2)
        product = torch.bmm(rows_of_all_targets, part.reshape(count, width, -1)).unflatten(1, (len(values), -1))
        shape = -1, *block_lengths(batch + rows, of_batch + of_rows), *out[0]
        intervals = (*of_batch, *of_rows, *[None] * len(out[0]))
        blocks.append(Block(intervals, product.transpose(0, 1).reshape(shape)))
    return add_blocks([batch, rows, *out], blocks)


def _matrices_times(matrices: Tensor, gradient: BlockGradient) -> BlockGradient:
    """Matrices (D,P,N) times the gradient (D,N,C); if few rows of the gradient are nonzero, as outer products."""
    batch, rows, columns = gradient.axes
    axis, out = len(batch), split_axes(matrices.shape[1:2])[0]
    blocks = []
    for block in gradient.blocks:
        interval = block.intervals[axis] if len(rows) == 1 else None
        if interval is None:
            return BlockGradient.from_dense(matrices @ gradient.dense())
        intervals = (*block.intervals[:axis], *[None] * len(out), *block.intervals[axis + 1 :])
        part = matrices.reshape(1, *batch, *out, rows[0]).movedim(-1, axis + 1)
        left = narrow_to(part, block.intervals[: axis + 1]).movedim(axis + 1, -1)
        right = block.dense().movedim(axis + 1, -1)
        for _ in columns:
            left = left.unsqueeze(-2)
        for _ in out:
            right = right.unsqueeze(axis + 1)
        product = OuterProduct(left, right)
        blocks.append(Block(intervals, product if interval[1] <= MAX_RANK else product.multiply()))
    return add_blocks([batch, out, columns], blocks)


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """(K, rows, columns) times (columns, M), where the rows and the columns may be several axes each."""
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return skinny_mm.mm(values.reshape(-1, len(matrix)), matrix)


def _outer_times(values: OuterProduct, matrix: Tensor, rows: int) -> Tensor:
    """An outer product (K, rows, columns) times (columns, M).

    One factor is multiplied with the matrix, and the result with the other factor, if this takes fewer multiplications
    than writing out the outer product.
    """
    sizes = torch.broadcast_shapes(values.left.shape, values.right.shape)
    rank, out = len(sizes) - 1, len(sizes)
    columns = {axis + rows + 1 for axis in axes_longer_than_one(matrix)}
    left, right = (set(axes_longer_than_one(factor)) for factor in values)

    def multiplications(*factors: set[int]) -> int:
        return math.prod(sizes[axis] for axis in set().union(*factors))

    def axes_between(first: set[int], second: set[int]) -> set[int]:
        return {axis for axis in first | columns if axis <= rows or axis in second}

    def work(first: set[int], second: set[int]) -> int:
        return sizes[rank] * (multiplications(first, columns) + multiplications(axes_between(first, second), second))

    orders = [(left, right, *values), (right, left, *values[::-1])]
    first, second, first_factor, second_factor = min(orders, key=lambda order: work(*order[:2]))
    if work(first, second) > multiplications(left, right, columns):
        return _times(values.multiply(), matrix)
    between = sorted(axes_between(first, second))
    first_axes, second_axes = [*sorted(first), rank], [*sorted(second), rank]
    of_product = [*between, rank, out]
    of_matrix = [*sorted(columns), out]
    product = torch.einsum(squeeze_axes(first_factor), first_axes, squeeze_axes(matrix), of_matrix, of_product)
    result_axes = sorted(axis for axis in left | right if axis <= rows)
    return torch.einsum(squeeze_axes(second_factor), second_axes, product, of_product, [*result_axes, out])
