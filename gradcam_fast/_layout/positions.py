"""Whether the positions of a map are places in the images, or stand for something else: queries, latents, words.

Attention hands on as many tokens as there are queries, whatever it reads. So the way back from a map to the images
leads through the queries of each attention and never through its keys and values. Where a decoder's queries are learned
it does not get to the images, although the values that the decoder returns depend on them. Nor does it get past tokens
that an index picked in another order than they were in: the best of them, or those that a mask leaves.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Positions", "positions_of"]

# Parts of the names of autograd nodes. Fused attention takes the queries first.
_FUSED_ATTENTION = "ScaledDotProduct"
# Attention weights are multiplied with values, after the softmax of the product of queries and keys.
_PRODUCTS = ("Bmm", "MmBackward")
_SOFTMAX = "Softmax"
# Sampling takes the maps first, and then the places where to sample; deformable attention has those of its queries.
_SAMPLER = "GridSampler"
# Between the softmax and the product with the values.
_KEEPS_ROWS = ("Clone", "Copy", "Div", "Dropout", "Expand", "Mul", "View")


class Positions(Enum):
    """What the positions of a map are."""

    OF_IMAGES = "places in the images"
    PICKED = (
        "places in the images that an index has picked or shuffled, and which these are is not known; give tokens= a "
        "callable that puts them into their places, (B,C,h,w)"
    )
    OTHERS = "no places in the images, but those of queries or other tokens"


def positions_of(root: Node | None, leaves: Collection[int]) -> Positions:
    """What the positions are of what the node made from these leaves, which depend on the images.

    Args:
        leaves: by identity.
    """
    found = Positions.OTHERS
    # Nodes, with whether they stand between a softmax and the product of queries and keys, and before a picking index.
    pending, seen = [(root, False, False)], set()
    while pending:
        node, in_weights, picked = pending.pop()
        if node is None or (node, in_weights, picked) in seen:
            continue
        seen.add((node, in_weights, picked))
        if hasattr(node, "variable"):
            if id(node.variable) in leaves:
                if not picked:
                    return Positions.OF_IMAGES
                found = Positions.PICKED
            continue
        name, behind = node.name(), [input_node for input_node, _ in node.next_functions]
        if _FUSED_ATTENTION in name:
            behind = behind[:1]
        elif _SAMPLER in name and behind[1] is not None:
            behind = behind[1:]
        elif any(word in name for word in _PRODUCTS) and (in_weights or _is_softmax(behind[0])):
            behind, in_weights = behind[:1], not in_weights
        picked = picked or _picks_tokens(node)
        pending.extend((input_node, in_weights, picked) for input_node in behind)
    return found


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


def _picks_tokens(node: Any) -> bool:
    """Whether the node picks tokens (B,N,C) by an index that does not leave them in their order."""
    name = node.name()
    if name.startswith("IndexBackward"):
        if len(node._saved_self_sym_sizes) != 3:
            return False
        images, tokens = (*node._saved_indices, None)[:2]
        if images is not None and images.dtype == torch.bool:
            return images.dim() == 2
        if tokens is None:
            return False
        if images is not None and tokens.dtype != torch.bool:  # image and token for each one picked
            tokens = images * node._saved_self_sym_sizes[1] + tokens
        return not _rises(tokens, tokens.dim() - 1)
    if name.startswith(("Gather", "IndexSelect")):
        axes = node._saved_self.dim() if name.startswith("Gather") else len(node._saved_self_sym_sizes)
        # A negative axis is saved as an unsigned number.
        on_tokens = axes == 3 and node._saved_dim in (1, 2**64 - 2)
        index = node._saved_index
        return on_tokens and not _rises(index, 1 if index.dim() == 3 else 0)
    return False


def _rises(index: Tensor, axis: int) -> bool:
    return index.dtype != torch.bool and bool((index.diff(dim=axis) > 0).all())
