"""Operations that keep a gradient's values and put them in another place or shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .blocks import Block, BlockGradient, add_blocks
from .rules import RULES, Operation, Rule, rule, signed

__all__ = ["add_gradients", "permute", "reshape", "share_axes", "stack"]


def reshape(gradient: BlockGradient, shape: Sequence[int]) -> BlockGradient | None:
    """The gradient in another shape; None if that would split an axis which a block does not fill."""
    sizes = gradient.sizes
    pieces: list[list[int]] = [[] for _ in sizes]
    axes, axis, left = [], -1, 1
    for size in shape:
        parts: list[int] = []
        while size != 1:
            if left == 1:
                axis += 1
                left = sizes[axis]
            part = math.gcd(size, left)
            if part not in (size, left):
                return None
            pieces[axis].append(part)
            parts.append(part)
            size, left = size // part, left // part
        axes.append(tuple(parts))
    blocks = gradient.blocks
    for axis in reversed(range(len(sizes))):
        if len(pieces[axis]) > 1:
            if any(block.intervals[axis] is not None for block in blocks):
                return None
            blocks = [_split_axis(block, axis, pieces[axis]) for block in blocks]
    return BlockGradient(axes, blocks)


def _split_axis(block: Block, axis: int, parts: list[int]) -> Block:
    intervals = (*block.intervals[:axis], *[None] * len(parts), *block.intervals[axis + 1 :])
    ones = [1] * len(parts)
    split = block.map(lambda values: values.unflatten(axis + 1, parts if values.shape[axis + 1] != 1 else ones))
    return split._replace(intervals=intervals)


def permute(gradient: BlockGradient, order: Sequence[int]) -> BlockGradient:
    """The gradient with its dimensions in another order."""
    starts = [gradient.first_axis(dim) for dim in order]
    axes = [start + i for start, dim in zip(starts, order, strict=True) for i in range(len(gradient.axes[dim]))]

    def permute_block(block: Block) -> Block:
        permuted = block.map(
            lambda values: values.permute(0, *(axis + 1 for axis in axes), *range(len(axes) + 1, values.dim()))
        )
        return permuted._replace(intervals=tuple(block.intervals[axis] for axis in axes))

    return BlockGradient((gradient.axes[dim] for dim in order), [permute_block(block) for block in gradient.blocks])


def share_axes(gradients: Sequence[BlockGradient]) -> list[BlockGradient] | None:
    """Gradients of one shape, split into the axes of the most finely split; None if that cannot be."""
    finest = max(gradients, key=lambda gradient: len(gradient.sizes))
    same = []
    for gradient in gradients:
        if gradient.axes != finest.axes:
            finer = reshape(gradient, finest.sizes)
            if finer is None or finer.sizes != finest.sizes:
                return None
            gradient = BlockGradient(finest.axes, finer.blocks)
        same.append(gradient)
    return same


def add_gradients(one: BlockGradient, other: BlockGradient) -> BlockGradient:
    """The sum of two gradients of one shape."""
    same = share_axes([one, other])
    if same is None:
        return BlockGradient.from_dense(one.dense() + other.dense())
    return add_blocks(same[0].axes, [*same[0].blocks, *same[1].blocks])


def stack(gradients: Mapping[int, BlockGradient], count: int, dim: int) -> BlockGradient | None:
    """The gradients at their places of a new dimension of size ``count``, zeros at its other places."""
    same = share_axes(list(gradients.values()))
    if same is None:
        return None
    axes, new = list(same[0].axes), same[0].first_axis(dim)
    axes.insert(dim, (count,) if count > 1 else ())
    if count == 1:
        return BlockGradient(axes, same[0].blocks)
    blocks = [
        block.map(lambda values: values.unsqueeze(new + 1))._replace(
            intervals=(*block.intervals[:new], (place, 1), *block.intervals[new:])
        )
        for place, gradient in zip(gradients, same, strict=True)
        for block in gradient.blocks
    ]
    return add_blocks(axes, blocks)


@rule(
    "ReshapeAliasBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "UnsqueezeBackward0",
)
def _view(operation: Operation, gradient: BlockGradient) -> BlockGradient | None:
    return reshape(gradient, operation.inputs[0].shape)


# A gradient is summed over what was broadcast, and converted to the input's dtype, wherever it arrives.
@rule("AliasBackward0", "CloneBackward0", "ExpandBackward0", "ToCopyBackward0")
def _identity(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return gradient


@rule("PermuteBackward0")
def _permute(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    order = [signed(dim) % len(gradient.shape) for dim in operation.saved("dims")]
    return permute(gradient, [order.index(dim) for dim in range(len(order))])


@rule("TransposeBackward0")
def _transpose(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    order = list(range(len(gradient.shape)))
    one, other = signed(operation.saved("dim0")), signed(operation.saved("dim1"))
    order[one], order[other] = order[other], order[one]
    return permute(gradient, order)


@rule("TBackward0")
def _t(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return permute(gradient, range(len(gradient.shape))[::-1])


@rule("SelectBackward0")
def _select(operation: Operation, gradient: BlockGradient) -> BlockGradient | None:
    shape = operation.inputs[0].shape
    dim = signed(operation.saved("dim")) % len(shape)
    return stack({signed(operation.saved("index")) % shape[dim]: gradient}, shape[dim], dim)


@rule("SliceBackward0", applies=lambda operation: operation.wanted == [0] and operation.saved("step") == 1)
def _slice(operation: Operation, gradient: BlockGradient) -> BlockGradient | None:
    shape = operation.inputs[0].shape
    dim = signed(operation.saved("dim")) % len(shape)
    axis, count = gradient.first_axis(dim), gradient.shape[dim]
    if count == shape[dim]:
        return gradient
    if len(gradient.axes[dim]) > 1 or (count > 1 and any(block.intervals[axis] for block in gradient.blocks)):
        return None
    start = signed(operation.saved("start"))
    start = max(start + shape[dim], 0) if start < 0 else start
    axes, behind = list(gradient.axes), axis + len(gradient.axes[dim])
    axes[dim] = (shape[dim],)

    def place(block: Block) -> Block:
        # A dimension of size 1 has no axis yet.
        block_with_axis = block if count > 1 else block.map(lambda values: values.unsqueeze(axis + 1))
        return block_with_axis._replace(intervals=(*block.intervals[:axis], (start, count), *block.intervals[behind:]))

    return BlockGradient(axes, [place(block) for block in gradient.blocks])


def _unbind(operation: Operation, gradients: Sequence[BlockGradient | None]) -> BlockGradient | None:
    dim = signed(operation.saved("dim")) % len(operation.inputs[0].shape)
    return stack({i: gradient for i, gradient in enumerate(gradients) if gradient}, len(gradients), dim)


def _split(operation: Operation, gradients: Sequence[BlockGradient | None]) -> BlockGradient | None:
    dim = signed(operation.saved("dim")) % len(operation.inputs[0].shape)
    stacked = _unbind(operation, gradients)
    if stacked is None:
        return None
    axes = list(stacked.axes)
    axes[dim : dim + 2] = [axes[dim] + axes[dim + 1]]
    return BlockGradient(axes, stacked.blocks)


def _into_equal_parts(operation: Operation) -> bool:
    return all(output.shape == operation.outputs[0].shape for output in operation.outputs)


RULES["UnbindBackward0"] = Rule(_unbind, lambda operation: True)
RULES["SplitBackward0"] = RULES["SplitWithSizesBackward0"] = Rule(_split, _into_equal_parts)
