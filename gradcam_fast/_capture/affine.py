"""Whether a tensor is an affine function of the activations of a layer, as logits behind pooling and a linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["is_affine"]

# Nodes of operations that are linear in each of their inputs, by the beginnings of their names. Products of two tensors
# are not among them: one of both may be a mask of the activations, of which the graph shows nothing.
_LINEAR = (
    "AdaptiveAvgPool",
    "AddmmBackward",
    "AliasBackward",
    "AvgPool",
    "CloneBackward",
    "ConvolutionBackward",
    "ExpandBackward",
    "LinearBackward",
    "MeanBackward",
    "MkldnnAdaptiveAvgPool",
    "MmBackward",
    "NegBackward",
    "PermuteBackward",
    "ReshapeAliasBackward",
    "SelectBackward",
    "SliceBackward",
    "SqueezeBackward",
    "SumBackward",
    "TBackward",
    "ToCopyBackward",
    "TransposeBackward",
    "UnsafeViewBackward",
    "UnsqueezeBackward",
    "ViewBackward",
)
_SUMS = ("AddBackward", "CatBackward", "SubBackward")
_BATCH_NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward")


def is_affine(result: object, activations: Tensor) -> bool:
    """Whether ``result`` is an affine function of the activations: its gradient is the same whatever they are.

    False where its graph does not tell, and where it does not depend on them.
    """
    root = getattr(result, "grad_fn", None)
    if root is None:
        return False
    depends: dict[Node, bool] = {}
    pending: list[tuple[Node, bool]] = [(root, False)]
    while pending:
        node, inputs_are_known = pending.pop()
        if node in depends:
            continue
        if _is_of(node, activations):
            depends[node] = True
            continue
        inputs = [each for each, _ in node.next_functions if each is not None]
        if not inputs_are_known:
            pending.append((node, True))
            pending.extend((each, False) for each in inputs if each not in depends)
            continue
        count = sum(depends[each] for each in inputs)
        depends[node] = count > 0
        if count and not _is_linear(node, count, len(node.next_functions) - len(inputs)):
            return False
    return depends[root]


def _is_of(node: Node, activations: Tensor) -> bool:
    return (
        node is activations.grad_fn
        if activations.grad_fn is not None
        else getattr(node, "variable", None) is activations
    )


def _is_linear(node: Node, dependent_inputs: int, inputs_without_graph: int) -> bool:
    name = node.name()
    if name.startswith(_BATCH_NORMS):
        return dependent_inputs == 1 and not node._saved_training  # type: ignore[attr-defined]
    if name.startswith(_SUMS):
        # What has no graph may be made of the activations all the same, and detached.
        return not inputs_without_graph
    # A layer whose weights depend on the activations, too, is a product.
    return name.startswith(_LINEAR) and dependent_inputs == 1
