"""The table of known operations, by the names of their nodes in the autograd graph, and what makes a node a known one.

The modules that import ``rule`` fill the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._subclasses import FakeTensor

from .blocks import BlockGradient

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["RULES", "Operation", "is_known", "rule", "signed"]

# The gradient of the only wanted input, or of each input; None if the blocks cannot be kept.
Result = BlockGradient | tuple[BlockGradient | None, ...] | None


class Operation(NamedTuple):
    """A node of the autograd graph, and the edges and tensors of its inputs; None for inputs whose gradient is unused.

    ``outputs`` and ``inputs`` are PyTorch's own notes on the shape, dtype and device of the node's tensors.
    """

    node: Node
    outputs: Sequence[Any]
    edges: tuple[tuple[Node, int] | None, ...]
    inputs: tuple[Any, ...]

    @property
    def wanted(self) -> list[int]:
        """The inputs whose gradients are used."""
        return [i for i, edge in enumerate(self.edges) if edge is not None]

    def saved(self, name: str) -> Any:
        """What the forward saved under this name for the backward.

        Raises:
            RuntimeError: it has been freed, or changed in place since.
        """
        return getattr(self.node, f"_saved_{name}")


class Rule(NamedTuple):
    """How an operation carries a gradient from its outputs to its inputs, and for which nodes of its name."""

    backward: Callable[[Operation, Sequence[BlockGradient | None]], Result]
    applies: Callable[[Operation], bool]


RULES: dict[str, Rule] = {}


def rule(
    *names: str, applies: Callable[[Operation], bool] = lambda operation: operation.wanted == [0]
) -> Callable[[Callable[[Operation, BlockGradient], Result]], Callable[[Operation, BlockGradient], Result]]:
    """Enter a function into the table under the names of nodes; it takes the gradient of their only output."""

    def enter(function: Callable[[Operation, BlockGradient], Result]) -> Callable[[Operation, BlockGradient], Result]:
        def backward(operation: Operation, gradients: Sequence[BlockGradient | None]) -> Result:
            assert gradients[0] is not None
            return function(operation, gradients[0])

        RULES.update(dict.fromkeys(names, Rule(backward, applies)))
        return function

    return enter


def is_known(operation: Operation) -> bool:
    """Whether the table has a rule for the operation, and its tensors are ordinary ones on the CPU."""
    entry = RULES.get(operation.node.name())
    return (
        entry is not None
        and all(map(_is_ordinary, operation.outputs))
        and all(saved.unpack_hook is None and _is_plain(saved.data) for saved in _saved_tensors(operation.node))
        and entry.applies(operation)
    )


def _is_ordinary(output: Any) -> bool:
    return (
        output.device.type == "cpu"
        and output.dtype.is_floating_point
        and not (output.is_nested_tensor or output.is_cpp_nested_tensor)
        and 0 not in output.shape
    )


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether a saved tensor is strided, of PyTorch's own class or a fake of that, and does not retain its gradient."""
    return tensor is None or (
        (type(tensor) in (torch.Tensor, torch.nn.Parameter) or isinstance(tensor, FakeTensor))
        and tensor.layout is torch.strided
        and not tensor.retains_grad
    )


_SAVED_NAMES: dict[type, list[str]] = {}


def _saved_tensors(node: Node) -> Iterator[Any]:
    kind = type(node)
    if kind not in _SAVED_NAMES:
        _SAVED_NAMES[kind] = [name for name in dir(kind) if name.startswith("_raw_saved_")]
    for name in _SAVED_NAMES[kind]:
        saved = getattr(node, name)
        yield from saved if isinstance(saved, tuple) else (saved,)


def signed(number: int) -> int:
    """A dimension or index as it was given: nodes keep negative ones modulo 2**64."""
    return number - (1 << 64) if number >> 63 else number
