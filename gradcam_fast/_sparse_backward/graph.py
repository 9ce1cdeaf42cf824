"""Decides by one walk over the autograd graph whether a backward can run in blocks, and runs it without the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import GradientEdge

from . import attention, elementwise, matmul  # noqa: F401 (they fill BACKWARD_RULES)
from .blocks import BlockGradient
from .known_operations import BACKWARD_RULES, Operation, is_known
from .reshaping import add_gradients

if TYPE_CHECKING:
    from torch.autograd.graph import Node

__all__ = ["backward", "plan"]


def plan(start: GradientEdge, sources: Sequence[GradientEdge]) -> list[Operation] | None:
    """The operations from the start to the sources in the order of a backward; None if one of them is not known."""
    nodes = _between(start.node, {source.node for source in sources})
    operations = []
    for node, outputs in nodes.items():
        edges = tuple((before, i) if before in nodes else None for before, i in node.next_functions)
        if any(edges):
            inputs = tuple(edge and nodes[edge[0]][edge[1]] for edge in edges)
            operation = Operation(node, outputs, edges, inputs)
            if not is_known(operation):
                return None
            operations.append(operation)
    return operations


def _between(start: Node, sources: set[Node]) -> dict[Node, Sequence[Any]]:
    """The nodes on the paths from the start to the sources, with the metadata of their outputs.

    A node comes before all nodes that it leads to.
    """
    # Whether a node leads to a source; None while its inputs are visited.
    leads: dict[Node | None, bool | None] = {None: False}
    inputs_first: list[Node] = []
    pending: list[Any] = [start]
    while pending:
        node = pending[-1]
        if node not in leads:
            leads[node] = None
            pending += [before for before, _ in node.next_functions if before not in leads]
            continue
        pending.pop()
        if leads[node] is None:
            leads[node] = node in sources or any(leads[before] for before, _ in node.next_functions)
            if leads[node]:
                inputs_first.append(node)
    return {node: node._input_metadata for node in reversed(inputs_first)}


def backward(
    operations: Sequence[Operation], start: GradientEdge, sources: Sequence[GradientEdge], gradient: BlockGradient
) -> list[BlockGradient | None]:
    """The gradients of the sources for this gradient of the start; None for a source without a gradient."""
    gradients = {(start.node, start.output_nr): gradient}
    source_outputs = {(source.node, source.output_nr) for source in sources}
    for operation in operations:
        outputs = [(operation.node, i) for i in range(len(operation.outputs))]
        output_gradients = [gradients.get(output) for output in outputs]
        if any(output_gradients):
            input_gradients = _input_gradients(operation, output_gradients)
            for edge, metadata, input_gradient in zip(operation.edges, operation.inputs, input_gradients, strict=True):
                if edge is not None and input_gradient is not None:
                    fitted = _fit(input_gradient, metadata)
                    gradients[edge] = add_gradients(gradients[edge], fitted) if edge in gradients else fitted
        for output in outputs:
            if output not in source_outputs:
                gradients.pop(output, None)
    return [gradients.get((source.node, source.output_nr)) for source in sources]


def _input_gradients(
    operation: Operation, output_gradients: Sequence[BlockGradient | None]
) -> Sequence[BlockGradient | None]:
    """The gradients of an operation's inputs: by its rule in blocks, or else by PyTorch from the dense gradients."""
    gradients = BACKWARD_RULES[operation.node.name()].backward(operation, output_gradients)
    if isinstance(gradients, BlockGradient):
        return [gradients if edge else None for edge in operation.edges]
    return _by_pytorch(operation, output_gradients) if gradients is None else gradients


def _by_pytorch(operation: Operation, gradients: Sequence[BlockGradient | None]) -> list[BlockGradient | None]:
    targets = max(gradient.targets for gradient in gradients if gradient is not None)
    dense = [
        [None] * targets if gradient is None else gradient.dense().expand(targets, *gradient.shape)
        for gradient in gradients
    ]
    node: Any = operation.node
    per_target = []
    for output_gradients in zip(*dense, strict=True):
        input_gradients = node(*output_gradients)
        per_target.append(input_gradients if isinstance(input_gradients, tuple) else (input_gradients,))
    return [
        None if of_one_input[0] is None else BlockGradient.from_dense(torch.stack(of_one_input))
        for of_one_input in zip(*per_target, strict=True)
    ]


def _fit(gradient: BlockGradient, metadata: Any) -> BlockGradient:
    """The gradient summed over what was broadcast, in the dtype of the input, as PyTorch's engine does it."""
    shape = tuple(metadata.shape)
    if gradient.shape != shape:
        dense = gradient.dense()
        ones = (1,) * (len(gradient.shape) - len(shape))
        gradient = BlockGradient.from_dense(dense.sum_to_size(len(dense), *ones, *shape).reshape(len(dense), *shape))
    if gradient.dtype != metadata.dtype:
        blocks = [block.map(lambda values: values.to(metadata.dtype)) for block in gradient.blocks]
        gradient = BlockGradient(gradient.axes, blocks)
    return gradient
