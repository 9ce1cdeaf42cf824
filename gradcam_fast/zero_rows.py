"""Leaving out of a backward pass the rows that are zero: nearly all of them, where a network reads one token.

A head that reads the class token sends a gradient to this token alone, and to this token alone it goes back until the
attention of the last block spreads it: what is done on the way is mostly products with zeros. Zero times infinity or
NaN counts as zero here. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["without_zero_rows"]

# Names of PyTorch's own. Without them everything is computed, to the same end.
_PUSH, _POP = (getattr(_python_dispatch, name, None) for name in ("_push_mode", "_pop_mode"))
_ATTENTION = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@contextmanager
def without_zero_rows(activations: Sequence[Tensor]) -> Iterator[None]:
    """Inside, products and attention on the CPU leave out rows of zeros, if all activations are there and (B,N,C).

    On another device the host would have to wait to know which rows these are.
    """
    if _PUSH is None or _POP is None or not all(each.dim() == 3 and each.is_cpu for each in activations):
        yield
        return
    # Not "with": the mode's own __enter__ sets flags of the whole process, and two threads may leave them set.
    _PUSH(_WithoutZeroRows())
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


def _product(rows: Tensor, matrix: Tensor) -> Tensor | None:
    if rows.layout is not torch.strided or not rows.is_cpu:
        return None
    some = _few(rows.any(1))
    return None if some is None else _among_zeros(torch.mm(rows[some], matrix), 0, some, len(rows))


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


_SPARING: dict[Any, Callable[..., Any]] = {torch.ops.aten.mm.default: _product}
if _ATTENTION is not None:
    _SPARING[_ATTENTION.default] = _attention
