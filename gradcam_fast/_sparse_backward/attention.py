"""The backward of PyTorch's fused attention on the CPU, for few queries: products of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .blocks import Block, Blocks, Outer, Range, axes_of, bundle, cut, lengths, on
from .products import FEW

if TYPE_CHECKING:
    from torch import Tensor


@on("_scaled_dot_product_flash_attention_for_cpu_backward.default")
def _attention_backward(
    operation: Any,
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout: float,
    causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Blocks, Blocks, Blocks] | None:
    """The backward of attention (B,heads,N,C) where few queries have a gradient: the others have no part in any."""
    among_themselves = query.shape == key.shape == value.shape
    if causal or attn_mask is not None or dropout or not among_themselves or not isinstance(gradient, Blocks):
        return None
    asked = _asked(gradient)
    count = sum(many for _, many in asked)
    if not 0 < 4 * count <= gradient.shape[2]:
        return None
    of_out = _queries(gradient, asked)
    places = torch.cat([torch.arange(first, first + many) for first, many in asked])
    query, out, logsumexp = (each.index_select(2, places) for each in (query, out, logsumexp))
    if count > FEW:
        found = [operation(each, query, key, value, out, logsumexp, 0.0, False, scale=scale) for each in of_out]
        of_query, of_key, of_value = (torch.stack(each) for each in zip(*found, strict=True))
        return _among_zeros(gradient, asked, of_query), bundle(of_key), bundle(of_value)
    of_scores, weights = _through_softmax(of_out, query, key, value, out, logsumexp, scale)
    of_query = _of_all_targets(of_scores, key.to(of_scores.dtype))
    return (
        _among_zeros(gradient, asked, of_query),
        _outer(gradient, of_scores, query[None]),
        _outer(gradient, weights[None], of_out),
    )


def _through_softmax(
    of_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The scores' gradients (K,B,heads,queries,N) and the weights (B,heads,queries,N), as precise as the sums."""
    query, key, value, out, of_out = (each.to(logsumexp.dtype) for each in (query, key, value, out, of_out))
    scale = query.shape[3] ** -0.5 if scale is None else scale
    weights = torch.exp(query @ key.mT * scale - logsumexp.unsqueeze(3))
    of_weights = _of_all_targets(of_out, value.mT)
    return weights * (of_weights - (of_out * out).sum(4, keepdim=True)) * scale, weights


def _of_all_targets(rows: Tensor, matrices: Tensor) -> Tensor:
    """(K,B,heads,queries,M) times (B,heads,M,P): each matrix is read once."""
    together = rows.permute(1, 2, 0, 3, 4).flatten(2, 3)
    return (together @ matrices).unflatten(2, (len(rows), -1)).permute(2, 0, 1, 3, 4)


def _asked(gradient: Blocks) -> list[tuple[int, int]]:
    """First of neighbouring queries with a gradient and how many these are, in order; nothing if all may have one."""
    axis = gradient.first_axis(2)
    if len(gradient.axes[2]) != 1 or any(block.ranges[axis] is None for block in gradient.blocks):
        return []
    asked: list[tuple[int, int]] = []
    for first, count in sorted(block.ranges[axis] or (0, 0) for block in gradient.blocks):
        if asked and first <= sum(asked[-1]):
            begin, before = asked[-1]
            asked[-1] = begin, max(before, first + count - begin)
        else:
            asked.append((first, count))
    return asked


def _queries(gradient: Blocks, asked: list[tuple[int, int]]) -> Tensor:
    """The gradients of the queries asked, side by side, (K,B,heads,queries,C)."""
    axis, sizes = gradient.first_axis(2), gradient.sizes
    sizes[axis] = sum(count for _, count in asked)
    whole = torch.zeros(gradient.targets, *sizes, dtype=gradient.dtype, device=gradient.device)
    for block in gradient.blocks:
        ranges = list(block.ranges)
        begin, count = ranges[axis] or (0, 0)
        left_out = begin
        for first, many in asked:
            left_out -= min(many, max(begin - first, 0))
        ranges[axis] = (begin - left_out, count)
        cut(whole, ranges).add_(block.numbers())
    return whole.reshape(-1, *gradient.shape[:2], sizes[axis], gradient.shape[3])


def _among_zeros(gradient: Blocks, asked: list[tuple[int, int]], rows: Tensor) -> Blocks:
    """These gradients (K,B,heads,queries,C) of queries where they were asked."""
    axes = axes_of(gradient.shape)
    some: list[Range] = [None] * sum(map(len, axes))
    blocks = []
    for asked_here, here in zip(asked, rows.split([count for _, count in asked], 3), strict=True):
        some[sum(map(len, axes[:2]))] = asked_here
        shape = lengths([size for each in axes for size in each], some)
        blocks.append(Block(tuple(some), here.to(gradient.dtype).reshape(-1, *shape)))
    return Blocks(axes, blocks)


def _outer(gradient: Blocks, left: Tensor, right: Tensor) -> Blocks:
    """The sum over the queries of left (K,B,heads,queries,N) times right (K,B,heads,queries,C)."""
    axes = axes_of(gradient.shape)

    def factor(numbers: Tensor) -> Tensor:
        numbers = numbers.movedim(3, 5).to(gradient.dtype)
        sizes = [size for size, axis in zip(numbers.shape[1:5], axes, strict=True) if axis]
        return numbers.reshape(-1, *sizes, numbers.shape[5])

    whole = Block((None,) * sum(map(len, axes)), Outer(factor(left.unsqueeze(5)), factor(right.unsqueeze(4))))
    return Blocks(axes, [whole])
