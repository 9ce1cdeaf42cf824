"""Operations on each of a gradient's numbers, or on rows of them, and sums of gradients.

Each gives None where the blocks do not go with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .blocks import Block, Blocks, added, beside, on
from .moves import alike

if TYPE_CHECKING:
    from torch import Tensor


@on("add.Tensor")
def _add(operation: Any, one: Tensor, other: Any, *, alpha: float = 1) -> Blocks | None:
    if alpha != 1 or not isinstance(other, torch.Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return None
    same = alike([one, other])
    return None if same is None else added(same[0].axes, [*same[0].blocks, *same[1].blocks])


@on(
    "mul.Tensor",
    "mul.Scalar",
    "neg.default",
    "_to_copy.default",
    "gelu_backward.default",
    "silu_backward.default",
    "threshold_backward.default",
    "native_dropout_backward.default",
)
def _pointwise(operation: Any, *args: Any, **kwargs: Any) -> Blocks | None:
    """Each number is made of those at its place, and is zero where the gradient is."""
    gradients = [each for each in args if isinstance(each, Blocks)]
    if len(gradients) != 1:
        return None
    (gradient,) = gradients
    # What two numbers without dimensions make is of another dtype than what one makes with many; integers are rounded.
    if gradient.dim() == 0 or not (kwargs.get("dtype") or gradient.dtype).is_floating_point:
        return None
    blocks = []
    for block in gradient.blocks:
        numbers = block.numbers()
        there = []
        for each in args:
            if each is gradient:
                each = numbers
            elif isinstance(each, torch.Tensor) and each.dim() > 0:
                each = beside(each, gradient, block)
                if each is None:
                    return None
                # Not all of them broadcast.
                each = each.expand(numbers.shape).contiguous()
            there.append(each)
        blocks.append(Block(block.ranges, operation(*there, **kwargs)))
    return Blocks(gradient.axes, blocks)


@on("div.Tensor", "div.Scalar")
def _quotient(operation: Any, gradient: Any, number: Any) -> Blocks | None:
    return _pointwise(operation, gradient, number) if isinstance(gradient, Blocks) else None


@on("native_layer_norm_backward.default")
def _layer_norm_backward(
    operation: Any,
    gradient: Tensor,
    inputs: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    deviation: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Blocks, None, None] | None:
    if not isinstance(gradient, Blocks) or list(wanted) != [True, False, False] or 1 in shape:
        return None
    normed = gradient.first_axis(-len(shape))
    blocks = []
    for block in gradient.blocks:
        if any(block.ranges[normed:]):
            return None
        values = block.numbers()
        rows = values.shape[: normed + 1]

        def there(numbers: Tensor, last: Sequence[int], rows: Any = rows, block: Block = block) -> Tensor:
            some = beside(numbers, gradient, block)
            assert some is not None
            return some.flatten(normed + 1).expand(*rows, math.prod(last)).reshape(-1, *last).contiguous()

        ones = [1] * len(shape)
        of_rows = operation(
            values.reshape(-1, *shape),
            there(inputs, shape),
            shape,
            there(mean, ones),
            there(deviation, ones),
            weight,
            bias,
            wanted,
        )[0]
        blocks.append(Block(block.ranges, of_rows.reshape(values.shape)))
    return Blocks(gradient.axes, blocks), None, None


@on("_softmax_backward_data.default")
def _softmax_backward(operation: Any, gradient: Tensor, output: Tensor, dim: int, dtype: Any) -> Blocks | None:
    if not isinstance(gradient, Blocks) or len(gradient.axes[dim]) != 1:
        return None
    axis = gradient.first_axis(dim % gradient.dim())
    blocks = []
    for block in gradient.blocks:
        numbers, there = block.numbers(), beside(output, gradient, block)
        if block.ranges[axis] is not None or there is None:
            return None
        blocks.append(Block(block.ranges, operation(numbers, there.expand(numbers.shape), axis + 1, dtype)))
    return Blocks(gradient.axes, blocks)
