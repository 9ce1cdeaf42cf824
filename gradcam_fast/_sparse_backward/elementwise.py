"""Operations on a gradient's elements or rows, and operations left to PyTorch, which runs them on dense gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from .blocks import Block, BlockGradient, part_at_block
from .known_operations import BACKWARD_RULES, BackwardRule, Operation, backward_rule, signed

if TYPE_CHECKING:
    from torch import Tensor

__all__: list[str] = []

_aten = torch.ops.aten


def _map(gradient: BlockGradient, function: Callable[..., Tensor], *tensors: Tensor) -> BlockGradient:
    """The function of the gradient and the tensors, element by element; it is 0 where the gradient is 0."""
    blocks = []
    for block in gradient.blocks:
        parts = [part_at_block(block, gradient, tensor) if tensor.dim() else tensor for tensor in tensors]
        blocks.append(Block(block.intervals, function(block.dense(), *parts)))
    return BlockGradient(gradient.axes, blocks)


def _scale(gradient: BlockGradient, factor: float) -> BlockGradient:
    return gradient if factor == 1 else _map(gradient, lambda values: values * factor)


@backward_rule("AddBackward0", applies=lambda operation: True)
def _add(operation: Operation, gradient: BlockGradient) -> tuple[BlockGradient, BlockGradient]:
    return gradient, _scale(gradient, operation.saved("alpha"))


@backward_rule("SubBackward0", applies=lambda operation: True)
def _sub(operation: Operation, gradient: BlockGradient) -> tuple[BlockGradient, BlockGradient]:
    return gradient, _scale(gradient, -operation.saved("alpha"))


@backward_rule("NegBackward0")
def _neg(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return _scale(gradient, -1)


@backward_rule("MulBackward0", applies=lambda operation: True)
def _mul(operation: Operation, gradient: BlockGradient) -> tuple[BlockGradient | None, ...]:
    return tuple(
        _map(gradient, torch.mul, operation.saved(factor)) if i in operation.used_inputs else None
        for i, factor in enumerate(("other", "self"))
    )


@backward_rule("DivBackward0", applies=lambda operation: True)
def _div(operation: Operation, gradient: BlockGradient) -> tuple[BlockGradient, BlockGradient | None]:
    quotient = _map(gradient, torch.div, operation.saved("other"))
    if 1 not in operation.used_inputs:
        return quotient, None
    dividend, divisor = operation.saved("self"), operation.saved("other")
    return quotient, _map(quotient, lambda values, a, b: -values * a / b, dividend, divisor)


@backward_rule("ReluBackward0")
def _relu(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return _activation(
        gradient, lambda values, out: _aten.threshold_backward(values, out, 0), operation.saved("result")
    )


@backward_rule("GeluBackward0")
def _gelu(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    approximate = operation.saved("approximate")
    return _activation(
        gradient,
        lambda values, inputs: _aten.gelu_backward(values, inputs, approximate=approximate),
        operation.saved("self"),
    )


@backward_rule("SiluBackward0")
def _silu(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return _activation(gradient, _aten.silu_backward, operation.saved("self"))


@backward_rule("SigmoidBackward0")
def _sigmoid(operation: Operation, gradient: BlockGradient) -> BlockGradient:
    return _activation(gradient, _aten.sigmoid_backward, operation.saved("result"))


def _activation(gradient: BlockGradient, backward: Callable[[Tensor, Tensor], Tensor], saved: Tensor) -> BlockGradient:
    # Not all of these operators broadcast the targets.
    return _map(gradient, lambda values, part: backward(values, part.expand(values.shape).contiguous()), saved)


@backward_rule("NativeLayerNormBackward0")
def _layer_norm(operation: Operation, gradient: BlockGradient) -> BlockGradient | None:
    shape = operation.saved("normalized_shape")
    first_normalised_axis = gradient.first_axis(-len(shape))
    if 1 in shape or any(interval for block in gradient.blocks for interval in block.intervals[first_normalised_axis:]):
        return None
    inputs, mean, deviation = (operation.saved(name) for name in ("input", "result1", "result2"))
    weight, bias = operation.saved("weight"), operation.saved("bias")
    blocks = []
    for block in gradient.blocks:
        values = block.dense()
        rows = values.shape[: first_normalised_axis + 1]

        def rows_of(tensor: Tensor, row: Sequence[int], rows: Sequence[int] = rows, block: Block = block) -> Tensor:
            part = part_at_block(block, gradient, tensor).flatten(first_normalised_axis + 1)
            return part.expand(*rows, math.prod(row)).reshape(-1, *row).contiguous()

        ones = [1] * len(shape)
        grad_rows, _, _ = _aten.native_layer_norm_backward(
            values.reshape(-1, *shape),
            rows_of(inputs, shape),
            shape,
            rows_of(mean, ones),
            rows_of(deviation, ones),
            weight,
            bias,
            [True, False, False],
        )
        blocks.append(Block(block.intervals, grad_rows.reshape(values.shape)))
    return BlockGradient(gradient.axes, blocks)


@backward_rule("SoftmaxBackward0")
def _softmax(operation: Operation, gradient: BlockGradient) -> BlockGradient | None:
    dim = signed(operation.saved("dim")) % len(gradient.shape)
    axis = gradient.first_axis(dim)
    if len(gradient.axes[dim]) != 1 or any(block.intervals[axis] for block in gradient.blocks):
        return None
    dtype = operation.inputs[0].dtype
    return _map(
        gradient,
        lambda values, out: _aten._softmax_backward_data(values, out.expand(values.shape), axis + 1, dtype),
        operation.saved("result"),
    )


def _leave_to_pytorch(operation: Operation, gradients: Sequence[BlockGradient | None]) -> None:
    return None


# Operations without parameters: PyTorch's backward of a node would also compute the gradients of its parameters. Among
# them are the pooling of classifiers, and operations that turn logits into a score.
_LEFT_TO_PYTORCH = """
    Abs0 AdaptiveAvgPool2D0 Amax0 AvgPool2D0 Cat0 Clamp1 ClampMin0 Elu0 Exp0 Gather0 Hardsigmoid0 Hardswish0 Hardtanh0
    Index0 IndexSelect0 LeakyRelu0 LinalgVectorNorm0 Log0 LogSigmoid0 LogSoftmax0 Logsumexp0 MaskedFill0 Max0
    MaxPool2DWithIndices0 Mean1 Pow0 Rsqrt0 Softplus0 Sqrt0 Stack0 Sum0 Sum1 Tanh0 Topk0 Where0
""".split()
for _name in _LEFT_TO_PYTORCH:
    BACKWARD_RULES[f"{_name[:-1]}Backward{_name[-1]}"] = BackwardRule(_leave_to_pytorch, lambda operation: True)
