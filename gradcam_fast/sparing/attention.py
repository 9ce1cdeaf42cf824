"""The backward of PyTorch's fused attention on the CPU, for few queries: products of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .blocks import Block, Blocks, Outer, Range, axes_of, cut, lengths, on

if TYPE_CHECKING:
    from torch import Tensor

aten = torch.ops.aten


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
    """The backward of attention (B,heads,N,C) for neighbouring queries: the others have no part in any gradient."""
    among_themselves = query.shape == key.shape == value.shape
    if causal or attn_mask is not None or dropout or not among_themselves or not isinstance(gradient, Blocks):
        return None
    asked = _asked(gradient)
    if asked is None:
        return None
    scale = query.shape[3] ** -0.5 if scale is None else scale
    # (K,B,heads,queries,C), and without targets what these share; sums in the precision that the softmax was kept in.
    wide = logsumexp.dtype
    of_out = _queries(gradient, asked).to(wide)
    query, out, logsumexp = (each.narrow(2, *asked) for each in (query, out, logsumexp))
    query, key, value, out = (each.to(wide) for each in (query, key, value, out))
    weights = torch.exp(query @ key.mT * scale - logsumexp.unsqueeze(3))
    # Keys and values are read once for all targets.
    targets = len(of_out)
    together = of_out.permute(1, 2, 0, 3, 4).flatten(2, 3)
    of_weights = (together @ value.mT).unflatten(2, (targets, -1)).permute(2, 0, 1, 3, 4)
    of_scores = weights * (of_weights - (of_out * out).sum(4, keepdim=True)) * scale
    together = of_scores.permute(1, 2, 0, 3, 4).flatten(2, 3)
    of_query = (together @ key).unflatten(2, (targets, -1)).permute(2, 0, 1, 3, 4)

    axes = axes_of(gradient.shape)

    def outer(left: Tensor, right: Tensor) -> Blocks:
        """Left, (K,B,heads,queries,N), and right, (K,B,heads,queries,C), over the queries."""

        def factor(numbers: Tensor) -> Tensor:
            numbers = numbers.movedim(3, 5).to(gradient.dtype)
            sizes = [size for size, axis in zip(numbers.shape[1:5], axes, strict=True) if axis]
            return numbers.reshape(-1, *sizes, asked[1])

        whole = Block((None,) * sum(map(len, axes)), Outer(factor(left.unsqueeze(5)), factor(right.unsqueeze(4))))
        return Blocks(axes, [whole])

    some: list[Range] = [None] * sum(map(len, axes))
    some[sum(map(len, axes[:2]))] = asked
    of_query = of_query.to(gradient.dtype).reshape(-1, *lengths([size for each in axes for size in each], some))
    return Blocks(axes, [Block(tuple(some), of_query)]), outer(of_scores, query[None]), outer(weights[None], of_out)


if hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu_backward"):
    on(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)(_attention_backward)


def _asked(gradient: Blocks) -> tuple[int, int] | None:
    """The first query with a gradient and how many there are up to the last, if that is a small part."""
    axis = gradient.first_axis(2)
    found = [block.ranges[axis] for block in gradient.blocks] if len(gradient.axes[2]) == 1 else [None]
    some = [each for each in found if each is not None]
    if len(some) < len(found):
        return None
    first, end = min(begin for begin, _ in some), max(begin + count for begin, count in some)
    return (first, end - first) if 4 * (end - first) <= gradient.shape[2] else None


def _queries(gradient: Blocks, asked: tuple[int, int]) -> Tensor:
    """Their gradients, (K,B,heads,queries,C)."""
    axis = gradient.first_axis(2)
    sizes = gradient.sizes
    sizes[axis] = asked[1]
    whole = torch.zeros(gradient.targets, *sizes, dtype=gradient.dtype, device=gradient.device)
    for block in gradient.blocks:
        ranges = list(block.ranges)
        begin, count = ranges[axis] or asked
        ranges[axis] = (begin - asked[0], count)
        cut(whole, ranges).add_(block.numbers())
    return whole.reshape(-1, *gradient.shape[:2], asked[1], gradient.shape[3])
