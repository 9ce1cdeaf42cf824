"""Walks over the autograd graph behind the scores: its leaves, and the parts of the model's output it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .._layout.feature_layout import ImageGeometry

__all__ = ["Signature", "leaves_behind", "output_leaves", "output_parts", "pictures_behind", "signature"]

# Parts of the names of autograd nodes that mix channels: what lies behind such a node is more than the output itself.
_MIXES_CHANNELS = ("Addmm", "Baddbmm", "Bilinear", "Bmm", "Convolution", "Einsum", "Linear", "MmBackward", "ScaledDot")
# Those that reduce over positions: a model that pools its class maps returns a map no more.
_REDUCES = ("Amax", "AvgPool", "Logsumexp", "MaxBackward", "MaxPool", "Mean", "SumBackward")
# Those that only present a prediction: what they take is the prediction, too.
_PRESENTS = ("Clamp", "Permute", "PixelShuffle", "Sigmoid", "Softmax", "Tanh", "Unsqueeze", "Upsample", "View")

Path: TypeAlias = tuple[int, ...]
Signature: TypeAlias = frozenset[Path]
"""Which parts of the model's output the scores come from."""


def leaves_behind(root: Node | None) -> list[Tensor]:
    """The leaf tensors of the graph behind ``root``, parameters included."""
    return [node.variable for node in _nodes_behind([root]) if hasattr(node, "variable")]


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


def output_leaves(scores: Tensor, returned: list[Tensor], behind: Mapping[int, Node]) -> list[Tensor]:
    """The leaves that are the model's own output: no operation between mixes channels or reduces positions.

    Args:
        scores: with their graph.
        returned: the tensors in what the model returned; only those that the scores come from count.
        behind: where the graph goes on behind a leaf, by its identity. An output that a sigmoid, a softmax or a resize
            only presents is the output before that, too.
    """
    region = _nodes_behind(_reached(scores, returned), stop=_ends_a_part)
    leaves = [node.variable for node in region if hasattr(node, "variable")]
    for leaf in leaves:  # grows
        region = _nodes_behind([behind.get(id(leaf))], stop=lambda node: not (_presents(node) or _is_cut(node)))
        leaves.extend(node.variable for node in region if hasattr(node, "variable"))
    return leaves


def output_parts(scores: Tensor, returned: list[Tensor]) -> dict[Path, Node]:
    """The parts of the model's output that the scores may come from, by their paths in the graph.

    A part is the operation that mixes channels or reduces positions last: a head among several, one piece of a
    concatenated output. A path leads to it from a returned tensor, and is the same in every forward of a model.
    """
    places = {tensor.grad_fn: place for place, tensor in enumerate(returned)}
    pending: list[tuple[Path, Node]] = [((places[node],), node) for node in _reached(scores, returned)]
    parts: dict[Path, Node] = {}
    seen = set()
    while pending:
        path, node = pending.pop()
        if node in seen or hasattr(node, "variable"):
            continue
        seen.add(node)
        if _ends_a_part(node):
            parts[path] = node
        else:
            pending.extend(
                ((*path, place), behind) for place, (behind, _) in enumerate(node.next_functions) if behind is not None
            )
    return parts


def signature(scores: Tensor, returned: list[Tensor]) -> Signature:
    """The parts of the model's output that the scores do come from.

    Where there are several, a backward through the output's last operations tells; the host waits for it.
    """
    parts = output_parts(scores, returned)
    if len(parts) < 2:
        return frozenset(parts)
    edges = [GradientEdge(node, 0) for node in parts.values()]
    gradients = torch.autograd.grad(scores.sum(), edges, retain_graph=True, allow_unused=True)
    return frozenset(
        path for path, gradient in zip(parts, gradients, strict=True) if gradient is not None and gradient.any()
    )


def _nodes_behind(roots: Iterable[Node | None], stop: Callable[[Node], bool] = lambda node: False) -> Iterator[Node]:
    """All nodes of the graph behind ``roots``, these included; nothing behind a node for which ``stop`` is true."""
    pending, seen = [node for node in roots if node is not None], set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            if not stop(node):
                pending.extend(behind for behind, _ in node.next_functions if behind is not None)


def _reached(scores: Tensor, returned: list[Tensor]) -> list[Node]:
    """The nodes of the returned tensors that the scores come from."""
    roots = {tensor.grad_fn for tensor in returned if tensor.grad_fn is not None}
    return [node for node in _nodes_behind([scores.grad_fn], stop=roots.__contains__) if node in roots]


def _ends_a_part(node: Node) -> bool:
    return any(word in node.name() for word in (*_MIXES_CHANNELS, *_REDUCES))


def _presents(node: Node) -> bool:
    return any(word in node.name() for word in _PRESENTS)


def _is_cut(node: Node) -> bool:
    """Whether the node adds a leaf to maps without a graph, as a trial run does where it cuts the graph."""
    return "Add" in node.name() and all(
        behind is None or hasattr(behind, "variable") for behind, _ in node.next_functions
    )
