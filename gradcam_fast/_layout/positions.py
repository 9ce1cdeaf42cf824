"""Whether the positions of a map are places in the images, or stand for something else: queries, latents, words.

Attention hands on as many tokens as there are queries, whatever it reads. So the way back from a map to the images
leads through the queries of each attention and never through its keys and values. Where a decoder's queries are learned
it does not get to the images, although the values that the decoder returns depend on them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.autograd.graph import Node

__all__ = ["has_positions_of"]

# Parts of the names of autograd nodes. Fused attention takes the queries first.
_FUSED_ATTENTION = "ScaledDotProduct"
# Attention weights are multiplied with values, after the softmax of the product of queries and keys.
_PRODUCTS = ("Bmm", "MmBackward")
_SOFTMAX = "Softmax"
# Between the softmax and the product with the values.
_KEEPS_ROWS = ("Clone", "Copy", "Div", "Dropout", "Expand", "Mul", "View")
# Tokens that are picked by an index tensor: the best of them, or those that a mask leaves.
_PICKS = ("Gather",)


def has_positions_of(root: Node | None, leaves: Collection[int]) -> bool:
    """Whether the positions of what the node made are those of one of the leaves, which are given by identity."""
    # Nodes with whether they stand between a softmax and the product of queries and keys.
    pending, seen = [(root, False)], set()
    while pending:
        node, in_weights = pending.pop()
        if node is None or (node, in_weights) in seen:
            continue
        seen.add((node, in_weights))
        if hasattr(node, "variable"):
            if id(node.variable) in leaves:
                return True
            continue
        name, behind = node.name(), [input_node for input_node, _ in node.next_functions]
        if any(word in name for word in _PICKS):
            continue
        if _FUSED_ATTENTION in name:
            behind = behind[:1]
        elif any(word in name for word in _PRODUCTS) and (in_weights or _is_softmax(behind[0])):
            behind, in_weights = behind[:1], not in_weights
        pending.extend((input_node, in_weights) for input_node in behind)
    return False


def _is_softmax(root: Node | None) -> bool:
    """Whether the node is a softmax, but for a dropout and changes of the shape behind."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if _SOFTMAX in node.name():
            return True
        seen.add(node)
        if any(word in node.name() for word in _KEEPS_ROWS):
            pending.extend(behind for behind, _ in node.next_functions)
    return False
