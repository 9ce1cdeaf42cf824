"""Walks over an autograd graph: its nodes, its leaves, and the pictures that maps are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._layout.feature_layout import ImageGeometry

__all__ = ["is_projection", "leaves_behind", "nodes_behind", "pictures_behind"]

# Parts of the names of autograd nodes: sums and changes of the shape, and products.
_KEEPS_VALUES = (
    "Add", "Alias", "Cat", "Clone", "Expand", "Permute", "Repeat", "Reshape", "Select", "Slice", "Split", "Squeeze",
    "Sub", "TBackward", "ToCopy", "Transpose", "Unbind", "UnsafeView", "View",
)  # fmt: skip
_PRODUCTS = ("AddmmBackward", "BmmBackward", "LinearBackward", "MmBackward", "MulBackward")


def leaves_behind(root: Node | None) -> list[Tensor]:
    """The leaf tensors of the graph behind ``root``, parameters included."""
    return [node.variable for node in nodes_behind([root]) if hasattr(node, "variable")]


def pictures_behind(
    maps: Tensor,
    of_images: Mapping[int, Tensor],
    of_one_picture: Mapping[int, frozenset[int]],
    geometry: ImageGeometry,
) -> frozenset[int]:
    """The pictures of a sample that ``maps`` are made of; it has several.

    Args:
        of_images: the leaves that depend on the images, by identity: the images themselves, or maps.
        of_one_picture: of leaves that are maps of one picture a sample, by identity, which one that is.
        geometry: the images.
    """
    pictures: set[int] = set()
    for leaf in leaves_behind(maps.grad_fn):
        if id(leaf) in of_one_picture:
            pictures |= of_one_picture[id(leaf)]
        elif id(leaf) in of_images:
            part = torch.autograd.grad(maps, leaf, torch.randn_like(maps), retain_graph=True, allow_unused=True)[0]
            if part is None:
                continue
            if part.dim() == 5:
                part = part.movedim(geometry.picture_axis, 1).flatten(0, 1)
            reached = part.flatten(1).any(1).nonzero()[:, 0]
            pictures |= set((reached % (geometry.pictures or 1)).tolist())
    return frozenset(pictures)


def nodes_behind(roots: Iterable[Node | None], stop: Callable[[Node], bool] = lambda node: False) -> Iterator[Node]:
    """All nodes of the graph behind ``roots``, these included; nothing behind a node for which ``stop`` is true."""
    pending, seen = [node for node in roots if node is not None], set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            if not stop(node):
                pending.extend(behind for behind, _ in node.next_functions if behind is not None)


def is_projection(root: Node | None) -> bool:
    """Whether a node is a linear layer's work: products of leaves with parameters, and sums of these, as LoRA adds."""
    return _made_of(root) == "products"


def _made_of(node: Node | None) -> str:
    """What a node holds: "parameters", other "leaves" as they are, "products" of them with parameters, or "others"."""
    leaf = getattr(node, "variable", None)
    if node is None or isinstance(leaf, nn.Parameter):
        return "parameters"
    if leaf is not None:
        return "leaves"
    multiplies = any(word in node.name() for word in _PRODUCTS)
    if not multiplies and not any(word in node.name() for word in _KEEPS_VALUES):
        return "others"
    inputs = [_made_of(before) for before, _ in node.next_functions]
    of_leaves = [made_of for made_of in inputs if made_of != "parameters"]
    if not of_leaves:
        return "parameters"
    if "others" in of_leaves or (multiplies and len(of_leaves) > 1):
        return "others"
    if multiplies and "Mul" not in node.name():
        return "products"
    return "leaves" if "leaves" in of_leaves else "products"
