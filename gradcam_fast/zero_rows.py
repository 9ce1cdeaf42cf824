"""Leaving out of a backward pass the rows that are zero: nearly all of them, where a network reads one token.

A head that reads the class token sends a gradient to this token alone, and to this token alone it goes back until the
attention of the last block spreads it: what is done on the way is mostly products with zeros. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

try:
    from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

    _ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
except (ImportError, AttributeError):  # names of PyTorch's own; without them everything is computed, to the same end
    TorchDispatchMode = None  # type: ignore[misc, assignment]

__all__ = ["without_zero_rows"]


@contextmanager
def without_zero_rows(activations: Tensor) -> Iterator[None]:
    """Inside, products and attention leave out rows of zeros, if ``activations`` are tokens (B,N,C) on the CPU.

    On another device the host would have to wait to know which rows these are.
    """
    if TorchDispatchMode is None or activations.dim() != 3 or not activations.is_cpu:
        yield
        return
    # Not "with": the mode's own __enter__ sets flags of the whole process, and two threads may leave them set.
    _push_mode(_WithoutZeroRows())
    try:
        yield
    finally:
        _pop_mode()


def _product(rows: Tensor, matrix: Tensor) -> Tensor | None:
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
    **scale: Any,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The backward of attention (B,heads,N,C): queries without gradient have no part in that of any other token."""
    some = None if causal or attn_mask is not None else _few(gradient.transpose(1, 2).flatten(2).any(2).any(0))
    if some is None:
        return None
    gradient, asked, out, logsumexp = (each.index_select(2, some) for each in (gradient, query, out, logsumexp))
    of_asked, of_key, of_value = _ATTENTION(gradient, asked, key, value, out, logsumexp, dropout, causal, **scale)
    return _among_zeros(of_asked, 2, some, query.shape[2]), of_key, of_value


def _few(there: Tensor) -> Tensor | None:
    """The places (n,) where ``there`` (N,) is true, if they are few enough for it to pay."""
    places = there.nonzero().squeeze(1)
    return places if 4 * len(places) <= len(there) else None


def _among_zeros(rows: Tensor, axis: int, places: Tensor, count: int) -> Tensor:
    shape = list(rows.shape)
    shape[axis] = count
    return rows.new_zeros(shape).index_copy_(axis, places, rows)


if TorchDispatchMode is not None:
    _SPARING: dict[Any, Callable[..., Any]] = {torch.ops.aten.mm.default: _product, _ATTENTION: _attention}

    class _WithoutZeroRows(TorchDispatchMode):
        """Is shown each operation before it runs, and runs those of the table on fewer rows."""

        supports_higher_order_operators = True

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # which would import PyTorch's compiler, for a second and a half

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            spared = None if types or operation not in _SPARING else _SPARING[operation](*args, **kwargs)
            return operation(*args, **kwargs) if spared is None else spared
