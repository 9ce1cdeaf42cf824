"""Operations that keep the values of a gradient and change their places or its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .blocks import Block, BlockGradient, add_blocks
from .known_operations import BACKWARD_RULES, BackwardRule, Operation, backward_rule, signed

__all__ = ["add_gradients", "permute", "reshape", "share_axes", "stack"]


def reshape(gradient: BlockGradient, shape: Sequence[int]) -> BlockGradient | None:
    """The gradient in another shape; None if an axis would be split that a block does not fill."""
    sizes = gradient.sizes
    pieces: list[list[int]] = [[] for _ in sizes]
    axes, axis, remaining = [], -1, 1
    for size in shape:
        parts: list[int] = []
        while size != 1:
            if remaining == 1:
                axis += 1
                remaining = sizes[axis]
            # One of the two divides the other. No gcd: that would make symbolic sizes plain numbers.
            if remaining % size == 0:
                part = size
            elif size % remaining == 0:
                part = remaining
            else:
                return None
            pieces[axis].append(part)
            parts.append(part)
            size, remaining = size // part, remaining // part
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
    """Gradients of one shape, all split into the axes of the most finely split one; None if that is not possible."""
    finest = max(gradients, key=lambda gradient: len(gradient.sizes))
    aligned = []
    for gradient in gradients:
        if gradient.axes != finest.axes:
            finer = reshape(gradient, finest.sizes)
            if finer is None or finer.sizes != finest.sizes:
                return None
            gradient = BlockGradient(finest.axes, finer.blocks)
        aligned.append(gradient)
    return aligned


def add_gradients(a: BlockGradient, b: BlockGradient) -> BlockGradient:
    """The sum of two gradients of one shape."""
    aligned = share_axes([a, b])
    if aligned is None:
        return BlockGradient.from_dense(a.dense() + b.dense())
    return add_blocks(aligned[0].axes, [*aligned[0].blocks, *aligned[1].blocks])


def stack(gradients: Mapping[int, BlockGradient], count: int, dim: int) -> BlockGradient | None:
    """The gradients along a new dimension of size ``count``, each at its index; zeros at all other indices."""
    aligned = share_axes(list(gradients.values()))
    if aligned is None:
        return None
    axes, new_axis = list(aligned[0].axes), aligned[0].first_axis(dim)
    axes.insert(dim, (count,) if count > 1 else ())
    if count == 1:
        return BlockGradient(axes, aligned[0].blocks)
    blocks = [
        block.map(lambda values: values.unsqueeze(new_axis + 1))._replace(
            intervals=(*block.intervals[:new_axis], (index, 1), *block.intervals[new_axis:])
        )
        for index, gradient in zip(gradients, aligned, strict=True)
        for block in gradient.blocks
    ]
    return add_blocks(axes, blocks)


@backward_rule(
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


# Expanding and converting need nothing here: graph._fit fits every gradient to the shape and dtype of its input.
@backward_rule("AliasBackward0", "CloneBackward0", "ExpandBackward0", "ToCopyBackward0")
def _identity(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return gradient


@backward_rule("PermuteBackward0")
def _permute(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    order = [signed(dim) % len(gradient.shape) for dim in operation.saved("dims")]
    return permute(gradient, [order.index(dim) for dim in range(len(order))])


@backward_rule("TransposeBackward0")
def _transpose(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    order = list(range(len(gradient.shape)))
    dim0, dim1 = signed(operation.saved("dim0")), signed(operation.saved("dim1"))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(gradient, order)


@backward_rule("TBackward0")
def _t(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return permute(gradient, range(len(gradient.shape))[::-1])


@backward_rule("SelectBackward0")
def _select(operation: Operation, gradient: BlockGradient) -> BlockGradient | None:
    shape = operation.inputs[0].shape
    dim = signed(operation.saved("dim")) % len(shape)
    return stack({signed(operation.saved("index")) % shape[dim]: gradient}, shape[dim], dim)


@backward_rule(
    "SliceBackward0", applies=lambda operation: operation.used_inputs == [0] and operation.saved("step") == 1
)
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
    axes, next_axis = list(gradient.axes), axis + len(gradient.axes[dim])
    axes[dim] = (shape[dim],)

    def place(block: Block) -> Block:
        # A dimension of size 1 has no axis yet.
        block_with_axis = block if count > 1 else block.map(lambda values: values.unsqueeze(axis + 1))
        return block_with_axis._replace(
            intervals=(*block.intervals[:axis], (start, count), *block.intervals[next_axis:])
        )

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


BACKWARD_RULES["UnbindBackward0"] = BackwardRule(_unbind, lambda operation: True)
BACKWARD_RULES["SplitBackward0"] = BACKWARD_RULES["SplitWithSizesBackward0"] = BackwardRule(_split, _into_equal_parts)
