"""A gradient that is zero but for a few blocks, so that a backward pass need not multiply the zeros.

A head that reads the class token sends a gradient to this token alone. It stays there through norms and linear layers
until attention spreads it, and even then each head gives to all keys and values one row times one column. A PyTorch
tensor of such a gradient's shape here stands for its blocks, and for several targets' at once. Knows nothing of models,
nor of any operation: the modules beside it do.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Axes",
    "Block",
    "Blocks",
    "Outer",
    "Range",
    "added",
    "axes_of",
    "beside",
    "bundle",
    "cut",
    "lengths",
    "longer_than_one",
    "made",
    "on",
    "run",
    "squeezed",
    "written_out",
]

# Along an axis: None for all of it, or the first place and how many.
Range = tuple[int, int] | None
# What each dimension is made of, the outermost first; a dimension of one place of nothing.
Axes = tuple[tuple[int, ...], ...]

# More blocks than a last transformer block's queries, keys and values are.
_MANY = 8

_WAYS: dict[Any, Callable[..., Any]] = {}


class _Made(threading.local):
    references: list[weakref.ref[Blocks]] | None = None


_MADE = _Made()


@contextmanager
def made() -> Iterator[list[weakref.ref[Blocks]]]:
    """All Blocks that this thread makes meanwhile."""
    references: list[weakref.ref[Blocks]] = []
    before, _MADE.references = _MADE.references, references
    try:
        yield references
    finally:
        _MADE.references = before


class Outer(NamedTuple):
    """Two factors, broadcast and multiplied, summed over one more dimension behind the axes."""

    left: Tensor
    right: Tensor

    def multiplied(self) -> Tensor:
        sizes = torch.broadcast_shapes(self.left.shape, self.right.shape)
        axes = [longer_than_one(each) for each in self]
        every, rank = sorted({*axes[0], *axes[1]}), len(sizes) - 1
        factors = ((squeezed(each), [*own, rank]) for each, own in zip(self, axes, strict=True))
        return torch.einsum(*(part for factor in factors for part in factor), every).reshape(sizes[:-1])


class Block(NamedTuple):
    """Where it lies along each axis, and what is there: of all targets, or if these agree of one, then the axes."""

    ranges: tuple[Range, ...]
    values: Tensor | Outer

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.values) if isinstance(self.values, Outer) else (self.values,)

    def map(self, function: Callable[[Tensor], Tensor]) -> Block:
        made = [function(each) for each in self.tensors()]
        return Block(self.ranges, Outer(*made) if len(made) > 1 else made[0])

    def numbers(self) -> Tensor:
        return self.values.multiplied() if isinstance(self.values, Outer) else self.values


class Blocks(torch.Tensor):
    """The sum of blocks among zeros."""

    axes: Axes
    blocks: Sequence[Block]
    targets: int

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, axes: Iterable[tuple[int, ...]], blocks: Sequence[Block]) -> Blocks:
        axes = tuple(axes)
        values = [each for block in blocks for each in block.tensors()]
        shape = [math.prod(each) for each in axes]
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=values[0].dtype, device=values[0].device)
        # Who asks for its memory shall have an error, not a null pointer.
        torch._C._set_throw_on_mutable_data_ptr(self)
        self.axes, self.blocks, self.targets = axes, blocks, max(each.shape[0] for each in values)
        if _MADE.references is not None:
            _MADE.references.append(weakref.ref(self))
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(operation, args, kwargs or {})

    @property
    def sizes(self) -> list[int]:
        """Of the axes."""
        return [size for each in self.axes for size in each]

    def first_axis(self, dim: int) -> int:
        """Of a dimension, or if it is made of none, of those behind it."""
        return sum(map(len, self.axes[:dim]))


def on(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks the way in which operations of these names are done on blocks; it returns None where that cannot be.

    Names that this PyTorch does not know are passed over.
    """

    def mark(way: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            packet, overload = name.split(".")
            operation = getattr(getattr(torch.ops.aten, packet, None), overload, None)
            if operation is not None:
                _WAYS[operation] = way
        return way

    return mark


def run(operation: Any, args: Any, kwargs: Any) -> Any:
    """An operation some of whose arguments are Blocks: on their blocks, else on all numbers, target by target.

    Raises:
        TypeError: it would write into one of them, or tells what need not be so of each target.
    """
    way = _WAYS.get(operation)
    found = None if way is None else way(operation, *args, **kwargs)
    return _on_all_numbers(operation, args, kwargs) if found is None else found


def _on_all_numbers(operation: Any, args: Any, kwargs: Any) -> Any:
    if operation._schema.is_mutable:
        raise TypeError(f"{operation} would write into a gradient that is not there")
    given, form = tree_flatten((args, kwargs))
    numbers = [written_out(each) if isinstance(each, Blocks) else [each] for each in given]
    results = []
    for k in range(max(map(len, numbers))):
        # Memory of their own, in order: what an operation does with strides it does as their shape lets it expect.
        own = [
            each[k % len(each)].clone(memory_format=torch.contiguous_format) if isinstance(whole, Blocks) else each[0]
            for whole, each in zip(given, numbers, strict=True)
        ]
        args, kwargs = tree_unflatten(own, form)
        results.append(operation(*args, **kwargs))
    together = []
    for each in zip(*(tree_flatten(result)[0] for result in results), strict=True):
        if len(each) > 1 and each[0] is not None and not isinstance(each[0], torch.Tensor):
            raise TypeError(f"{operation} tells one thing of the gradients of {len(each)} targets")
        together.append(bundle(torch.stack(each)) if isinstance(each[0], torch.Tensor) else each[0])
    return tree_unflatten(together, tree_flatten(results[0])[1])


def bundle(gradients: Tensor) -> Blocks:
    """The gradients (K,...) of K targets as one (...)."""
    axes = axes_of(gradients.shape[1:])
    sizes = [size for each in axes for size in each]
    return Blocks(axes, [Block((None,) * len(sizes), gradients.reshape(-1, *sizes))])


def written_out(gradient: Blocks) -> Tensor:
    """All numbers of all its targets, (K,...)."""
    first, *others = sorted(gradient.blocks, key=lambda block: any(block.ranges))
    shape = gradient.targets, *gradient.sizes
    if any(first.ranges):
        others.insert(0, first)
        whole = torch.zeros(shape, dtype=gradient.dtype, device=gradient.device)
    else:
        whole = first.numbers().expand(shape)
        if others:
            whole = whole.clone(memory_format=torch.contiguous_format)
    for block in others:
        cut(whole, block.ranges).add_(block.numbers())
    return whole.reshape(-1, *gradient.shape)


def axes_of(shape: Sequence[int]) -> Axes:
    return tuple((size,) if size != 1 else () for size in shape)


def lengths(sizes: Sequence[int], ranges: Sequence[Range]) -> list[int]:
    """How many places a block has along axes of these sizes."""
    return [size if each is None else each[1] for size, each in zip(sizes, ranges, strict=True)]


def cut(numbers: Tensor, ranges: Sequence[Range]) -> Tensor:
    """What lies where a block does, of a tensor with targets and all axes; those of one place are broadcast."""
    for axis, each in enumerate(ranges, 1):
        if each is not None and numbers.shape[axis] != 1:
            numbers = numbers.narrow(axis, *each)
    return numbers


def beside(numbers: Tensor, gradient: Blocks, block: Block) -> Tensor | None:
    """What of a tensor lies where a block does; None if the gradient would have to be broadcast to it."""
    missing = gradient.dim() - numbers.dim()
    shape = (1,) * missing + tuple(numbers.shape)
    parts = [1]
    for size, whole, each in zip(shape, gradient.shape, gradient.axes, strict=missing >= 0):
        if size not in (1, whole):
            return None
        parts += each if size != 1 else (1,) * len(each)
    return None if missing < 0 else cut(numbers.reshape(parts), block.ranges)


def added(axes: Iterable[tuple[int, ...]], blocks: Iterable[Block]) -> Blocks:
    """The sum of blocks: those at the same places as one, and written out where they are many or fill the whole."""
    found: dict[tuple[Range, ...], Block] = {}
    for block in blocks:
        before = found.get(block.ranges)
        found[block.ranges] = block if before is None else Block(block.ranges, before.numbers() + block.numbers())
    gradient = Blocks(axes, list(found.values()))
    sizes = gradient.sizes
    stored = sum(
        math.prod(lengths(sizes, block.ranges)) for block in gradient.blocks if not isinstance(block.values, Outer)
    )
    if len(found) > 1 and (len(found) > _MANY or stored >= gradient.numel()):
        whole = written_out(gradient).reshape(-1, *sizes)
        return Blocks(gradient.axes, [Block((None,) * len(sizes), whole)])
    return gradient


def longer_than_one(numbers: Tensor) -> list[int]:
    """Which dimensions before the last have more than one place."""
    return [axis for axis, size in enumerate(numbers.shape[:-1]) if size != 1]


def squeezed(numbers: Tensor) -> Tensor:
    """Without the others."""
    return numbers.reshape([*(size for size in numbers.shape[:-1] if size != 1), numbers.shape[-1]])
