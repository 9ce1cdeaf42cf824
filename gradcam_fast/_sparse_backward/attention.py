"""The backward of PyTorch's fused attention on the CPU, for the few queries that have a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .blocks import Block, BlockGradient, Interval, OuterProduct, block_lengths, narrow_to, split_axes
from .known_operations import Operation, backward_rule
from .matmul import MAX_RANK

if TYPE_CHECKING:
    from torch import Tensor

__all__: list[str] = []


@backward_rule(
    "ScaledDotProductFlashAttentionForCpuBackward0", applies=lambda operation: operation.used_inputs == [0, 1, 2]
)
def _attention(operation: Operation, gradient: BlockGradient) -> tuple[BlockGradient, ...] | None:
    """The gradients of queries, keys and values (B,heads,N,C); queries without a gradient add nothing to them."""
    query, key, value = (operation.saved(name) for name in ("query", "key", "value"))
    is_plain = operation.saved("dropout_p") == 0 and not operation.saved("is_causal")
    if not is_plain or operation.saved("attn_mask") is not None or not query.shape == key.shape == value.shape:
        return None
    intervals = _query_intervals(gradient)
    query_count = sum(length for _, length in intervals)
    if not 0 < 4 * query_count <= gradient.shape[2]:
        return None
    out, logsumexp, scale = (operation.saved(name) for name in ("output", "logsumexp", "scale"))
    grad_out = _query_rows(gradient, intervals)
    positions = torch.cat(
        [torch.arange(start, start + length, dtype=torch.int64, device=query.device) for start, length in intervals]
    )
    query, out, logsumexp = (tensor.index_select(2, positions) for tensor in (query, out, logsumexp))
    if query_count > MAX_RANK:
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        per_target = [
            backward(grad_of_target, query, key, value, out, logsumexp, 0.0, False, scale=scale)
            for grad_of_target in grad_out
        ]
        grad_query, grad_key, grad_value = (torch.stack(gradients) for gradients in zip(*per_target, strict=True))
        return (
            _scatter_rows(gradient, intervals, grad_query),
            BlockGradient.from_dense(grad_key),
            BlockGradient.from_dense(grad_value),
        )
    grad_scores, weights = _through_softmax(grad_out, query, key, value, out, logsumexp, scale)
    grad_query = _rows_times_matrices(grad_scores, key.to(grad_scores.dtype))
    return (
        _scatter_rows(gradient, intervals, grad_query),
        _outer_product(gradient, grad_scores, query[None]),
        _outer_product(gradient, weights[None], grad_out),
    )


def _through_softmax(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the attention scores (K,B,heads,queries,N), and the weights (B,heads,queries,N), in the sums' dtype.

    Attention keeps its sums in float32 where the inputs have fewer bits.
    """
    query, key, value, out, grad_out = (tensor.to(logsumexp.dtype) for tensor in (query, key, value, out, grad_out))
    scale = query.shape[3] ** -0.5 if scale is None else scale
    weights = torch.exp(query @ key.mT * scale - logsumexp.unsqueeze(3))
    grad_weights = _rows_times_matrices(grad_out, value.mT)
    return weights * (grad_weights - (grad_out * out).sum(4, keepdim=True)) * scale, weights


def _rows_times_matrices(rows: Tensor, matrices: Tensor) -> Tensor:
    """Rows (K,B,heads,queries,M) of all targets times matrices (B,heads,M,P); each matrix is read once."""
    rows_of_all_targets = rows.permute(1, 2, 0, 3, 4).flatten(2, 3)
    return (rows_of_all_targets @ matrices).unflatten(2, (len(rows), -1)).permute(2, 0, 1, 3, 4)


def _query_intervals(gradient: BlockGradient) -> list[tuple[int, int]]:
    """The queries with a gradient as (start, length), in order and merged; empty if all queries may have one."""
    axis = gradient.first_axis(2)
    if len(gradient.axes[2]) != 1 or any(block.intervals[axis] is None for block in gradient.blocks):
        return []
    merged: list[tuple[int, int]] = []
    for start, length in sorted(block.intervals[axis] or (0, 0) for block in gradient.blocks):
        if merged and start <= sum(merged[-1]):
            last_start, last_length = merged[-1]
            merged[-1] = last_start, max(last_length, start + length - last_start)
        else:
            merged.append((start, length))
    return merged


def _query_rows(gradient: BlockGradient, intervals: list[tuple[int, int]]) -> Tensor:
    """The gradients of the queries in the intervals, side by side, (K,B,heads,queries,C)."""
    axis, sizes = gradient.first_axis(2), gradient.sizes
    sizes[axis] = sum(length for _, length in intervals)
    first = gradient.blocks[0].tensors()[0]
    rows = torch.zeros(gradient.targets, *sizes, dtype=first.dtype, device=first.device)
    for block in gradient.blocks:
        block_intervals = list(block.intervals)
        start, length = block_intervals[axis] or (0, 0)
        rows_before = sum(min(count, max(start - first_query, 0)) for first_query, count in intervals)
        block_intervals[axis] = (rows_before, length)
        narrow_to(rows, block_intervals).add_(block.dense())
    return rows.reshape(-1, *gradient.shape[:2], sizes[axis], gradient.shape[3])


def _scatter_rows(gradient: BlockGradient, intervals: list[tuple[int, int]], rows: Tensor) -> BlockGradient:
    """Gradients (K,B,heads,queries,C) of the queries in the intervals, at their places among all queries."""
    axes = split_axes(gradient.shape)
    sizes = [size for dimension in axes for size in dimension]
    block_intervals: list[Interval] = [None] * len(sizes)
    blocks = []
    for interval, part in zip(intervals, rows.split([length for _, length in intervals], 3), strict=True):
        block_intervals[sum(map(len, axes[:2]))] = interval
        values = part.to(gradient.dtype).reshape(-1, *block_lengths(sizes, block_intervals))
        blocks.append(Block(tuple(block_intervals), values))
    return BlockGradient(axes, blocks)


def _outer_product(gradient: BlockGradient, left: Tensor, right: Tensor) -> BlockGradient:
    """The sum over the queries of left (K or 1,B,heads,queries,N) times right (K or 1,B,heads,queries,C)."""
    axes = split_axes(gradient.shape)

    def factor(tensor: Tensor) -> Tensor:
        tensor = tensor.movedim(3, 5).to(gradient.dtype)
        sizes = [size for size, dimension in zip(tensor.shape[1:5], axes, strict=True) if dimension]
        return tensor.reshape(-1, *sizes, tensor.shape[5])

    values = OuterProduct(factor(left.unsqueeze(5)), factor(right.unsqueeze(4)))
    return BlockGradient(axes, [Block((None,) * sum(map(len, axes)), values)])
