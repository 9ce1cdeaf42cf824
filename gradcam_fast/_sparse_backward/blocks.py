"""Gradients of several targets that are zero outside a few blocks, as plain data.

A head that reads the class token sends a gradient to that token alone. It stays there through norms and linear layers
until attention spreads it, and even then each head's gradient at the keys and the values is an outer product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Axes",
    "Block",
    "BlockGradient",
    "Interval",
    "OuterProduct",
    "add_blocks",
    "axes_longer_than_one",
    "block_lengths",
    "narrow_to",
    "part_at_block",
    "split_axes",
    "squeeze_axes",
]

# (start, length) along an axis; None is the whole axis.
Interval = tuple[int, int] | None
# For each dimension the sizes of the axes it is split into, outermost first; a dimension of size 1 has no axis.
Axes = tuple[tuple[int, ...], ...]

# Sums of more blocks are stored densely. The gradient of the queries, keys and values of one attention layer has fewer.
_MAX_BLOCKS = 8


class OuterProduct(NamedTuple):
    """Values as two factors (K or 1, *lengths or 1, rank): their broadcast product, summed over the rank."""

    left: Tensor
    right: Tensor

    def multiply(self) -> Tensor:
        sizes = torch.broadcast_shapes(self.left.shape, self.right.shape)
        left_axes, right_axes = (axes_longer_than_one(factor) for factor in self)
        rank = len(sizes) - 1
        product = torch.einsum(
            squeeze_axes(self.left),
            [*left_axes, rank],
            squeeze_axes(self.right),
            [*right_axes, rank],
            sorted({*left_axes, *right_axes}),
        )
        return product.reshape(sizes[:-1])


class Block(NamedTuple):
    """A nonzero block: its interval along each axis, and its values, shaped (K or 1, *lengths)."""

    intervals: tuple[Interval, ...]
    values: Tensor | OuterProduct

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.values) if isinstance(self.values, OuterProduct) else (self.values,)

    def map(self, function: Callable[[Tensor], Tensor]) -> Block:
        """The block with the function applied to its values, or to both factors if they are an outer product."""
        if isinstance(self.values, OuterProduct):
            return Block(self.intervals, OuterProduct(*map(function, self.values)))
        return Block(self.intervals, function(self.values))

    def dense(self) -> Tensor:
        return self.values.multiply() if isinstance(self.values, OuterProduct) else self.values


class BlockGradient:
    """The gradients (K,*shape) of K targets: the sum of the blocks, and zero outside them.

    A block whose values are shaped (1, *lengths) is the same for all K targets.
    """

    def __init__(self, axes: Iterable[tuple[int, ...]], blocks: Sequence[Block]) -> None:
        self.axes: Axes = tuple(axes)
        self.blocks = blocks
        self.shape = tuple(math.prod(sizes) for sizes in self.axes)

    @classmethod
    def from_dense(cls, gradients: Tensor) -> BlockGradient:
        """One block that holds all of the gradients (K,*shape)."""
        axes = split_axes(gradients.shape[1:])
        sizes = [size for dimension in axes for size in dimension]
        return cls(axes, [Block((None,) * len(sizes), gradients.reshape(len(gradients), *sizes))])

    @property
    def targets(self) -> int:
        return max(len(tensor) for block in self.blocks for tensor in block.tensors())

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].tensors()[0].dtype

    @property
    def sizes(self) -> list[int]:
        """The sizes of all axes."""
        return [size for dimension in self.axes for size in dimension]

    def first_axis(self, dimension: int) -> int:
        """The index of the dimension's first axis; if the dimension has no axis, of the next dimension's first axis."""
        return sum(map(len, self.axes[:dimension]))

    def dense(self) -> Tensor:
        """All values, (K,*shape)."""
        sizes, shape = self.sizes, (self.targets, *self.shape)
        full = [block.dense() for block in self.blocks if not any(block.intervals)]
        partial = [block for block in self.blocks if any(block.intervals)]
        if len(full) == 1 and not partial:
            return full[0].expand(shape[0], *sizes).reshape(shape)
        first = self.blocks[0].tensors()[0]
        total = torch.zeros(shape[0], *sizes, dtype=first.dtype, device=first.device)
        for values in full:
            total.add_(values)
        for block in partial:
            narrow_to(total, block.intervals).add_(block.dense())
        return total.reshape(shape)


def split_axes(shape: Iterable[int]) -> Axes:
    """One axis for each dimension of this shape that is longer than 1."""
    return tuple((size,) if size != 1 else () for size in shape)


def block_lengths(sizes: Sequence[int], intervals: Sequence[Interval]) -> list[int]:
    """A block's length along axes of these sizes."""
    return [size if interval is None else interval[1] for size, interval in zip(sizes, intervals, strict=True)]


def narrow_to(tensor: Tensor, intervals: Sequence[Interval]) -> Tensor:
    """A view of the part of a tensor (K,*axes) inside the intervals; axes of size 1 are left to broadcasting."""
    for axis, interval in enumerate(intervals, 1):
        if interval is not None and tensor.shape[axis] != 1:
            tensor = tensor.narrow(axis, *interval)
    return tensor


def part_at_block(block: Block, gradient: BlockGradient, tensor: Tensor) -> Tensor:
    """The part of a tensor inside the block, shaped like the block; the tensor broadcasts to the gradient's shape."""
    shape = (1,) * (len(gradient.shape) - tensor.dim()) + tuple(tensor.shape)
    axis_sizes = [1]
    for size, sizes in zip(shape, gradient.axes, strict=True):
        axis_sizes += sizes if size != 1 else (1,) * len(sizes)
    return narrow_to(tensor.reshape(axis_sizes), block.intervals)


def add_blocks(axes: Iterable[tuple[int, ...]], blocks: Iterable[Block]) -> BlockGradient:
    """The sum of the blocks, with one block per place; a single dense block if that is simpler.

    It is simpler if there are many blocks, or if together they are as large as the whole gradient.
    """
    sums: dict[tuple[Interval, ...], Block] = {}
    for block in blocks:
        earlier = sums.get(block.intervals)
        sums[block.intervals] = block if earlier is None else Block(block.intervals, earlier.dense() + block.dense())
    gradient = BlockGradient(axes, list(sums.values()))
    sizes = gradient.sizes
    stored = sum(
        math.prod(block_lengths(sizes, block.intervals))
        for block in gradient.blocks
        if not isinstance(block.values, OuterProduct)
    )
    if len(sums) > 1 and (len(sums) > _MAX_BLOCKS or stored >= math.prod(sizes)):
        whole = gradient.dense().reshape(-1, *sizes)
        return BlockGradient(gradient.axes, [Block((None,) * len(sizes), whole)])
    return gradient


def axes_longer_than_one(factor: Tensor) -> list[int]:
    """The axes of a factor that are not broadcast; its last axis, the rank, is not counted."""
    return [axis for axis, size in enumerate(factor.shape[:-1]) if size != 1]


def squeeze_axes(factor: Tensor) -> Tensor:
    """The factor without its axes of size 1; its last axis, the rank, stays."""
    return factor.reshape([*(size for size in factor.shape[:-1] if size != 1), factor.shape[-1]])
