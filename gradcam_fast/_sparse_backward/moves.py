"""Operations that leave a gradient's numbers as they are and put them elsewhere.

Each gives None where the blocks do not go with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .blocks import Block, Blocks, added, bundle, on

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["alike"]


def reshaped(gradient: Blocks, shape: Sequence[int]) -> Blocks | None:
    """In another shape; None if an axis would have to be divided that a block does not fill."""
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
            if any(block.ranges[axis] is not None for block in blocks):
                return None
            blocks = [_divided(block, axis, pieces[axis]) for block in blocks]
    return Blocks(axes, blocks)


def _divided(block: Block, axis: int, parts: list[int]) -> Block:
    ranges = (*block.ranges[:axis], *[None] * len(parts), *block.ranges[axis + 1 :])
    ones = [1] * len(parts)
    divided = block.map(lambda values: values.unflatten(axis + 1, parts if values.shape[axis + 1] != 1 else ones))
    return divided._replace(ranges=ranges)


def permuted(gradient: Blocks, order: Sequence[int]) -> Blocks:
    """With its dimensions in another order."""
    starts = [gradient.first_axis(dim) for dim in order]
    flat = [start + i for start, dim in zip(starts, order, strict=True) for i in range(len(gradient.axes[dim]))]

    def each(block: Block) -> Block:
        moved = block.map(
            lambda values: values.permute(0, *(axis + 1 for axis in flat), *range(len(flat) + 1, values.dim()))
        )
        return moved._replace(ranges=tuple(block.ranges[axis] for axis in flat))

    return Blocks((gradient.axes[dim] for dim in order), [each(block) for block in gradient.blocks])


def alike(gradients: Sequence[Tensor]) -> list[Blocks] | None:
    """Gradients of one shape, with the same axes; None if these do not go together."""
    found = [each if isinstance(each, Blocks) else bundle(each.unsqueeze(0)) for each in gradients]
    finest = max(found, key=lambda each: len(each.sizes))
    same = []
    for each in found:
        if each.axes != finest.axes:
            finer = reshaped(each, finest.sizes)
            if finer is None or finer.sizes != finest.sizes:
                return None
            each = Blocks(finest.axes, finer.blocks)
        same.append(each)
    return same


@on("view.default", "_unsafe_view.default")
def _view(operation: Any, gradient: Blocks, shape: Sequence[int]) -> Blocks | None:
    given = -math.prod(shape)
    return reshaped(gradient, [gradient.numel() // given if size == -1 else size for size in shape])


@on("clone.default", "detach.default", "alias.default")
def _same(operation: Any, gradient: Blocks, *args: Any, **kwargs: Any) -> Blocks:
    return Blocks(gradient.axes, gradient.blocks)


@on("expand.default")
def _expand(operation: Any, gradient: Blocks, shape: Sequence[int], **kwargs: Any) -> Blocks | None:
    return _same(operation, gradient) if list(shape) == list(gradient.shape) else None


@on("permute.default")
def _permute(operation: Any, gradient: Blocks, order: Sequence[int]) -> Blocks:
    return permuted(gradient, order)


@on("transpose.int")
def _transpose(operation: Any, gradient: Blocks, one: int, other: int) -> Blocks:
    order = list(range(gradient.dim()))
    order[one], order[other] = order[other], order[one]
    return permuted(gradient, order)


@on("t.default")
def _t(operation: Any, gradient: Blocks) -> Blocks:
    return permuted(gradient, range(gradient.dim())[::-1])


@on("unsqueeze.default")
def _unsqueeze(operation: Any, gradient: Blocks, dim: int) -> Blocks:
    axes = list(gradient.axes)
    axes.insert(dim % (len(axes) + 1), ())
    return Blocks(axes, gradient.blocks)


@on("squeeze.dim")
def _squeeze(operation: Any, gradient: Blocks, dim: int) -> Blocks:
    axes = list(gradient.axes)
    if not axes[dim]:
        del axes[dim]
    return Blocks(axes, gradient.blocks)


@on("select_backward.default")
def _select_backward(operation: Any, gradient: Tensor, shape: Sequence[int], dim: int, index: int) -> Blocks | None:
    return _stacked({index % shape[dim]: gradient}, shape[dim], dim % len(shape))


@on("stack.default")
def _stack(operation: Any, gradients: Sequence[Tensor], dim: int = 0) -> Blocks | None:
    return _stacked(dict(enumerate(gradients)), len(gradients), dim % (gradients[0].dim() + 1))


@on("cat.default")
def _cat(operation: Any, gradients: Sequence[Tensor], dim: int = 0) -> Blocks | None:
    """Of equal parts: the gradient of what a chunk divides."""
    if any(each.shape != gradients[0].shape for each in gradients):
        return None
    dim %= gradients[0].dim()
    stacked = _stacked(dict(enumerate(gradients)), len(gradients), dim)
    if stacked is None:
        return None
    axes = list(stacked.axes)
    axes[dim : dim + 2] = [axes[dim] + axes[dim + 1]]
    return Blocks(axes, stacked.blocks)


def _stacked(gradients: dict[int, Tensor], count: int, dim: int) -> Blocks | None:
    """Gradients of one shape at places of a new dimension of ``count``, and zeros at its others."""
    same = alike(list(gradients.values()))
    if same is None or any(each.dtype != same[0].dtype for each in same):
        return None
    axes, new = list(same[0].axes), same[0].first_axis(dim)
    axes.insert(dim, (count,) if count > 1 else ())
    if count == 1:
        return Blocks(axes, same[0].blocks)
    blocks = [
        block.map(lambda values: values.unsqueeze(new + 1))._replace(
            ranges=(*block.ranges[:new], (place, 1), *block.ranges[new:])
        )
        for place, each in zip(gradients, same, strict=True)
        for block in each.blocks
    ]
    return added(axes, blocks)


@on("slice_backward.default")
def _slice_backward(
    operation: Any, gradient: Tensor, shape: Sequence[int], dim: int, start: int, end: int, step: int
) -> Blocks | None:
    some = gradient if isinstance(gradient, Blocks) else bundle(gradient.unsqueeze(0))
    axis = some.first_axis(dim % len(shape))
    count = gradient.shape[dim]
    if count == shape[dim]:
        return _same(operation, some)
    if step != 1 or count == 0 or len(some.axes[dim]) > 1 or (count > 1 and any(b.ranges[axis] for b in some.blocks)):
        return None
    start = max(start + shape[dim], 0) if start < 0 else start
    axes, behind = list(some.axes), axis + len(some.axes[dim])
    axes[dim] = (shape[dim],)

    def moved(block: Block) -> Block:
        # What has one place has no axis yet.
        there = block if count > 1 else block.map(lambda values: values.unsqueeze(axis + 1))
        return there._replace(ranges=(*block.ranges[:axis], (start, count), *block.ranges[behind:]))

    return Blocks(axes, [moved(block) for block in some.blocks])
