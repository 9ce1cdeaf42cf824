"""The operations whose backward can run in blocks: a table by the names of their nodes in the autograd graph.

Modules that import ``backward_rule`` fill the table. ``is_known`` decides whether a node is of the table.
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

__all__ = ["BACKWARD_RULES", "BackwardRule", "Operation", "backward_rule", "is_known", "signed"]

# The gradient of the only used input, or a gradient for each input; None if PyTorch has to compute them.
InputGradients = BlockGradient | tuple[BlockGradient | None, ...] | None


class Operation(NamedTuple):
    """A node of the autograd graph, seen as the operation of the forward that it differentiates.

    Attributes:
        node: the node.
        outputs: PyTorch's metadata (shape, dtype, device) of each output of the operation.
        edges: for each input, the node and output that made it; None if the gradient of the input is not used.
        inputs: PyTorch's metadata of each input; None likewise.
    """

    node: Node
    outputs: Sequence[Any]
    edges: tuple[tuple[Node, int] | None, ...]
    inputs: tuple[Any, ...]

    @property
    def used_inputs(self) -> list[int]:
        """The indices of the inputs whose gradients are used."""
        return [i for i, edge in enumerate(self.edges) if edge is not None]

    def saved(self, name: str) -> Any:
        """The value that the forward saved under this name for the backward.

        Raises:
            RuntimeError: the value has been freed, or changed in place.
        """
        return getattr(self.node, f"_saved_{name}")


class BackwardRule(NamedTuple):
    """How an operation carries a gradient from its outputs to its inputs, and for which nodes of its name."""

    backward: Callable[[Operation, Sequence[BlockGradient | None]], InputGradients]
    applies: Callable[[Operation], bool]


BACKWARD_RULES: dict[str, BackwardRule] = {}


SingleOutputBackward = Callable[[Operation, BlockGradient], InputGradients]


def backward_rule(
    *names: str, applies: Callable[[Operation], bool] = lambda operation: operation.used_inputs == [0]
) -> Callable[[SingleOutputBackward], SingleOutputBackward]:
    """Register a function for nodes of these names; it takes the gradient of their only output."""

    def register(function: SingleOutputBackward) -> SingleOutputBackward:
        def backward(operation: Operation, gradients: Sequence[BlockGradient | None]) -> InputGradients:
            assert gradients[0] is not None
            return function(operation, gradients[0])

        BACKWARD_RULES.update(dict.fromkeys(names, BackwardRule(backward, applies)))
        return function

    return register


def is_known(operation: Operation) -> bool:
    """Whether the table has a backward_rule for the operation, and its tensors are ordinary ones on the CPU."""
    entry = BACKWARD_RULES.get(operation.node.name())
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
    """A dimension or index that a node saved, with its sign: nodes store negative numbers modulo 2**64."""
    return number - (1 << 64) if number >> 63 else number
