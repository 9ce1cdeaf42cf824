"""Leaving out of a backward pass what is multiplied by zeros.

A head that reads the class token sends a gradient to this token alone, and to this token alone it goes back until the
attention of the last block spreads it: nearly all rows of what is multiplied on the way are zero. And what goes back to
few images through a large linear layer, as VGG's and AlexNet's are, is decided by reading the layer's weight, of which
half or more meets the zeros of hidden units that a ReLU has silenced. Zero times infinity or NaN counts as zero here.
Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import GradientEdge
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from . import skinny

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["without_zero_rows"]

# Names of PyTorch's own. Without them everything is computed, to the same end.
_PUSH, _POP = (getattr(_python_dispatch, name, None) for name in ("_push_mode", "_pop_mode"))
_ATTENTION = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)

# Among how many operations nearest to the scores a large layer is looked for.
_NEAR = 16


@contextmanager
def without_zero_rows(start: Tensor | GradientEdge, activations: Sequence[Tensor], count: int) -> Iterator[None]:
    """Inside, a backward on the CPU leaves out rows of zeros, if there may be enough of them to make it worthwhile.

    That is if all activations are tokens (B,N,C), or if the gradients of ``count`` scores go from ``start`` through a
    large linear layer. On another device the host would have to wait to know which rows these are.
    """
    wanted = all(each.is_cpu for each in activations) and (
        all(each.dim() == 3 for each in activations)
        or (activations[0].dtype == torch.float32 and _large_layer_near(start, count))
    )
    if _PUSH is None or _POP is None or not wanted:
        yield
        return
    # PyTorch 2.10 does not keep it alive.
    mode = _WithoutZeroRows()
    # Not "with": the mode's own __enter__ sets flags of the whole process, and two threads may leave them set.
    _PUSH(mode)
    try:
        yield
    finally:
        _POP()


class _WithoutZeroRows(TorchDispatchMode):
    """Is shown each operation before it runs, and runs those of the table below on fewer rows."""

    # Without it PyTorch refuses operations such as the backward of flex_attention under a mode.
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else PyTorch wraps the method below, and the wrapper imports the compiler: a second and a half.
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sparing = None if types else _SPARING.get(operation)
        spared = sparing(*args, **kwargs) if sparing is not None else None
        return operation(*args, **kwargs) if spared is None else spared


def _large_layer_near(start: Tensor | GradientEdge, count: int) -> bool:
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    nodes = [] if first is None else [first]
    for node in nodes:
        if node.name() in ("AddmmBackward0", "MmBackward0"):
            inputs, outputs = node._saved_mat2_sym_sizes  # type: ignore[attr-defined]
            if skinny.pays(count, (outputs, inputs)):
                return True
        nodes += [each for each, _ in node.next_functions if each is not None and each not in nodes]
        if len(nodes) > _NEAR:
            break
    return False


def _is_plain(*tensors: Tensor) -> bool:
    return all(each.layout is torch.strided and each.is_cpu and not each.is_nested and each.numel() for each in tensors)


def _product(rows: Tensor, matrix: Tensor) -> Tensor | None:
    """The rows of tokens times a matrix, or those of few images times the weight of a large layer."""
    if not _is_plain(rows, matrix):
        return None
    if skinny.is_skinny(rows, matrix):
        return skinny.mm(rows, matrix)
    # Queries, keys and values are often made by one product, and few queries may have a gradient where all keys have.
    parts, width = (3, matrix.shape[1]) if rows.shape[1] == 3 * matrix.shape[1] else (1, 0)
    alive = rows.unflatten(1, (parts, -1)).any(2)
    some, asked = _few(alive.any(1)), _few(alive[:, 0])
    if some is not None:
        return _among_zeros(skinny.mm(rows[some], matrix), 0, some, len(rows))
    if asked is not None:
        of_all_three = torch.mm(rows[asked], matrix)
        return torch.mm(rows[:, width:], matrix[width:]).index_copy_(0, asked, of_all_three)
    return None


def _products(rows: Tensor, matrices: Tensor) -> Tensor | None:
    """The same for rows (K,B,R) of K targets, as PyTorch multiplies them if the matrix needs no gradient."""
    if not _is_plain(rows, matrices) or matrices.stride(0) != 0:
        return None
    product = _product(rows.flatten(0, 1), matrices[0])
    return None if product is None else product.unflatten(0, rows.shape[:2])


def _attention(
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
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The backward of attention (B,heads,N,C): queries without gradient have no part in that of any other token."""
    some = None if causal or attn_mask is not None else _few(gradient.transpose(1, 2).flatten(2).any(2).any(0))
    if some is None:
        return None
    gradient, asked, out, logsumexp = (each.index_select(2, some) for each in (gradient, query, out, logsumexp))
    of_asked, of_key, of_value = _ATTENTION(  # type: ignore[misc]
        gradient, asked, key, value, out, logsumexp, dropout, causal, scale=scale
    )
    return _among_zeros(of_asked, 2, some, query.shape[2]), of_key, of_value


def _few(nonzero: Tensor) -> Tensor | None:
    """The places (n,) where ``nonzero`` (N,) is true, if there is something to be won: they have to be copied."""
    places = nonzero.nonzero().squeeze(1)
    return places if 4 * len(places) <= len(nonzero) else None


def _among_zeros(rows: Tensor, axis: int, places: Tensor, count: int) -> Tensor:
    shape = list(rows.shape)
    shape[axis] = count
    return rows.new_zeros(shape).index_copy_(axis, places, rows)


_SPARING: dict[Any, Callable[..., Any]] = {torch.ops.aten.mm.default: _product, torch.ops.aten.bmm.default: _products}
if _ATTENTION is not None:
    _SPARING[_ATTENTION.default] = _attention
