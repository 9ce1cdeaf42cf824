"""Walks over an autograd graph: its nodes, its leaves, and the pictures that maps are made of."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._layout.feature_layout import ImageGeometry

__all__ = ["LeavesBehind", "is_projection", "leaves_behind", "nodes_behind", "pictures_behind"]

# Parts of the names of autograd nodes: sums and changes of the shape, and products.
_KEEPS_VALUES = (
    "Add", "Alias", "Cat", "Clone", "Expand", "Permute", "Repeat", "Reshape", "Select", "Slice", "Split", "Squeeze",
    "Sub", "TBackward", "ToCopy", "Transpose", "Unbind", "UnsafeView", "View",
)  # fmt: skip
_PRODUCTS = ("AddmmBackward", "BmmBackward", "LinearBackward", "MmBackward", "MulBackward")


def leaves_behind(root: Node | None) -> list[Tensor]:
    """The leaf tensors of the graph behind ``root``, parameters included."""
    variables = (getattr(node, "variable", None) for node in nodes_behind([root]))
    return [variable for variable in variables if variable is not None]


class LeavesBehind:
    """``leaves_behind`` the graph of maps; a walk is not repeated while the same maps are asked about."""

    _node: Node | None = None
    _leaves: Sequence[Tensor] = ()

    def __call__(self, maps: Tensor) -> Sequence[Tensor]:
        if maps.grad_fn is not self._node:
            self._node, self._leaves = maps.grad_fn, leaves_behind(maps.grad_fn)
        return self._leaves

    def forget(self) -> None:
        """Let go of the graph walked last, which holds memory."""
        self._node, self._leaves = None, ()


def pictures_behind(
    maps: Tensor,
    of_images: Container[int],
    of_one_picture: Mapping[int, frozenset[int]],
    geometry: ImageGeometry,
) -> frozenset[int]:
    """The pictures of a sample that ``maps`` are made of; it has several.

    Args:
        of_images: the identities of the leaves that depend on the images: the images themselves, or maps.
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


def nodes_behind(roots: Iterable[Node | None], stop: Callable[[Node], bool] | None = None) -> Iterator[Node]:
    """All nodes of the graph behind ``roots``, these included; nothing behind a node for which ``stop`` is true."""
    pending = [node for node in roots if node is not None]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            if stop is None or not stop(node):
                pending += [behind for behind, _ in node.next_functions if behind is not None and behind not in seen]


def is_projection(root: Node | None) -> bool:
    """Whether a node is a linear layer's work: products of leaves with parameters, and sums of these, as LoRA adds."""
    # Of each node what it holds, found from the leaves up: a forward may be thousands of nodes deep.
    held: dict[Node | None, str] = {None: "parameters"}
    pending = [root]
    while pending:
        node = pending[-1]
        if node is not None and node not in held:
            inputs = [] if _ends(node) else [before for before, _ in node.next_functions]
            if unknown := [before for before in inputs if before not in held]:
                pending += unknown
                continue
            held[node] = _held_by(node, [held[before] for before in inputs])
        pending.pop()
    return held[root] == "products"


def _ends(node: Node) -> bool:
    """Whether what a node holds does not depend on what it is made of."""
    return hasattr(node, "variable") or not any(word in node.name() for word in (*_PRODUCTS, *_KEEPS_VALUES))


def _held_by(node: Node, inputs: Sequence[str]) -> str:
    """What a node holds: "parameters", other "leaves" as they are, "products" of them with parameters, or "others"."""
    if _ends(node):
        leaf = getattr(node, "variable", None)
        return "others" if leaf is None else "parameters" if isinstance(leaf, nn.Parameter) else "leaves"
    multiplies = any(word in node.name() for word in _PRODUCTS)
    of_leaves = [held for held in inputs if held != "parameters"]
    if not of_leaves:
        return "parameters"
    if "others" in of_leaves or (multiplies and len(of_leaves) > 1):
        return "others"
    if multiplies and "Mul" not in node.name():
        return "products"
    return "leaves" if "leaves" in of_leaves else "products"
