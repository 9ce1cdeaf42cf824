"""What the scores read of the model's output: which parts of it, and which maps are that output itself.

Both are told by the autograd graph between the scores and the operations that mix channels last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from .graph_walk import nodes_behind

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .traced_map import TracedMap

__all__ = ["Signature", "channel_axes_of", "output_leaves", "output_parts", "signature"]

# Parts of the names of autograd nodes that mix channels: what lies behind such a node is more than the output itself.
_PRODUCTS = ("Addmm", "Addmv", "Baddbmm", "BmmBackward", "DotBackward", "MmBackward", "MvBackward")
_MIXES_CHANNELS = (*_PRODUCTS, "Convolution", "LinearBackward", "ScaledDot", "TrilinearBackward")
# Those that reduce over an axis: a model that pools its class maps returns a map no more.
_REDUCES = ("Amax", "AvgPool", "Logsumexp", "MaxBackward", "MaxPool", "Mean", "SumBackward")
_NORMS = ("NativeGroupNorm", "NativeLayerNorm", "RmsNorm")
_DISTANCES = ("LinalgVectorNorm", "NormBackward0", "NormBackward1", "MseLoss")
Path: TypeAlias = tuple[int, ...]
Signature: TypeAlias = frozenset[Path]
"""Which parts of the model's output the scores come from, and whether they mix the channels of these parts."""

# At the end of a path: the scores mix the channels of the returned tensor.
_MIXED = -1


def output_leaves(
    scores: Tensor, returned: list[Tensor], channel_axes: Mapping[int, int], behind: Mapping[int, Node]
) -> list[Tensor]:
    """The leaves that are the model's own output: no operation from there to the scores mixes channels.

    Args:
        scores: with their graph.
        returned: the tensors in what the model returned; those whose channels the scores mix themselves, as a
            similarity with a reference does, are features.
        channel_axes: of those that are maps, by their place.
        behind: where the graph goes on behind a leaf, by its identity. An output that a sigmoid, a softmax or a resize
            only presents is the output before that, too.
    """
    region = nodes_behind(_read_as_they_are(scores, returned, channel_axes), stop=_ends_a_part)
    leaves = [node.variable for node in region if hasattr(node, "variable")]
    for leaf in leaves:  # grows
        leaves.extend(_presented(behind.get(id(leaf)), behind))
    return leaves


def channel_axes_of(returned: list[Tensor], maps: Sequence[TracedMap], *, rank: int) -> dict[int, int]:
    """The axis of the channels of those returned tensors that are maps, or some positions of maps, by their place.

    Args:
        maps: of the trial run.
        rank: how many sides the images have.
    """
    by_leaf = {id(traced.leaf): traced for traced in maps if traced.layout.kind != "callable"}
    axes = {}
    for place, tensor in enumerate(returned):
        axis = 1 if tensor.dim() == rank + 2 else None
        for leaf in _presented(tensor.grad_fn, by_leaf) if tensor.dim() > 2 else ():
            layout = by_leaf[id(leaf)].layout
            channels, usual = layout(leaf).shape[1], 1 if layout.kind == "planes" else tensor.dim() - 1
            alike = [other for other, side in enumerate(tensor.shape) if other > 0 and side == channels]
            axis = usual if usual in alike else alike[0] if len(alike) == 1 else axis
        if axis is not None:
            axes[place] = axis
    return axes


def _presented(node: Node | None, known: Collection[int]) -> list[Tensor]:
    """The leaf of the map that a node only presents, by a sigmoid or a resize; none if other maps go in, too.

    Args:
        known: the leaves of maps, by identity.
    """
    region = list(nodes_behind([node], stop=_ends_a_part))
    maps = [node.variable for node in region if hasattr(node, "variable") and id(node.variable) in known]
    is_more = any(_ends_a_part(node) or _named(node, _NORMS) for node in region)
    return maps if len(maps) == 1 and not is_more else []


def output_parts(returned: list[Tensor], behind: Mapping[int, Node]) -> dict[Path, Node]:
    """The parts of the model's output, by all of their paths in the graph of a trial run.

    A part is the operation that mixes channels or reduces positions last: a head among several, one piece of a
    concatenated output; of features, the sum or the norm that a module returned. A path leads to it from a returned
    tensor, and is the same in every forward of a model.

    Args:
        behind: where the graph goes on behind a leaf.
    """
    parts: dict[Path, Node] = {}
    for place, tensor in enumerate(returned):
        pending: list[tuple[Path, Node | None, bool]] = [((place,), tensor.grad_fn, False)]
        seen = set()
        while pending:
            path, first, is_feature = pending.pop()
            if first is None:
                continue
            node, is_cut = _without_copies(first, behind)
            is_feature = is_feature or is_cut
            if node in seen or hasattr(node, "variable"):
                continue
            seen.add(node)
            if _ends_a_part(node) or (is_feature and (_named(node, _NORMS) or _is_sum_of_several(node))):
                parts[path] = node
            else:
                pending.extend(
                    ((*path, step), before, is_feature) for step, (before, _) in enumerate(node.next_functions)
                )
    return parts


def signature(
    scores: Tensor,
    returned: list[Tensor],
    parts: Collection[Path],
    channel_axes: Mapping[int, int],
    *,
    behind: Mapping[int, Node] | None = None,
    by_values: bool = True,
) -> Signature:
    """The parts of the model's output that the scores do come from; or with ``by_values=False``, may come from.

    Where there are several, a backward through the output's last operations tells; the host waits for it.

    Args:
        parts: the paths of all parts.
        channel_axes: of the returned tensors that are maps, by their place.
        behind: in a trial run, where the graph goes on behind a leaf; without values.
    """
    places = {tensor.grad_fn: place for place, tensor in enumerate(returned) if tensor.grad_fn is not None}
    reached = {places[node] for node in nodes_behind([scores.grad_fn], stop=places.__contains__) if node in places}
    nodes = {path: _at(returned[path[0]].grad_fn, path[1:], behind or {}) for path in parts if path[0] in reached}
    found = {path: node for path, node in nodes.items() if node is not None}
    paths = list(found)
    if by_values and len(found) > 1:
        edges = [GradientEdge(node, 0) for node in found.values()]
        gradients = torch.autograd.grad(scores.sum(), edges, retain_graph=True, allow_unused=True)
        paths = [
            path for path, gradient in zip(found, gradients, strict=True) if gradient is not None and gradient.any()
        ]
    if not channel_axes:  # no maps, and channels of nothing else can be mixed
        return frozenset(paths)
    as_they_are = _read_as_they_are(scores, returned, channel_axes)
    return frozenset(path if returned[path[0]].grad_fn in as_they_are else (*path, _MIXED) for path in paths)


def _at(node: Node | None, steps: Path, behind: Mapping[int, Node]) -> Node | None:
    """The node at the end of a path; None if the graph does not go so far."""
    for step in steps:
        if node is None:
            return None
        before = _without_copies(node, behind)[0].next_functions
        node = before[step][0] if step < len(before) else None
    return None if node is None else _without_copies(node, behind)[0]


def _without_copies(node: Node, behind: Mapping[int, Node]) -> tuple[Node, bool]:
    """The node behind the copies that a capture hands onward at its layers, or behind a trial run's cuts; if any."""
    is_cut = False
    while True:
        inputs = [before for before, _ in node.next_functions if before is not None]
        if len(inputs) != 1:
            return node, is_cut
        leaf = id(getattr(inputs[0], "variable", None))
        if leaf in behind:
            node, is_cut = behind[leaf], True
        elif node.name() == "CloneBackward0":
            node = inputs[0]
        else:
            return node, is_cut


def _read_as_they_are(scores: Tensor, returned: list[Tensor], channel_axes: Mapping[int, int]) -> set[Node]:
    """The nodes of those returned tensors whose channels the scores do not mix."""
    roots = {tensor.grad_fn for tensor in returned if tensor.grad_fn is not None}
    maps = [(returned[place], axis) for place, axis in channel_axes.items() if place < len(returned)]
    channels = {tensor.shape[axis] for tensor, axis in maps}
    # A linear layer may take the channels of one position, or all values of an image.
    summed = channels | {tensor[:1].numel() for tensor, _ in maps}

    def stop(node: Node) -> bool:
        if node in roots:
            return True
        if _named(node, _PRODUCTS):
            return _summed_by_product(node) in summed and not _is_mean_of_bins(node)
        return _mixes_channels(node) or _sums_channels(node, channels, roots)

    return {node for node in nodes_behind([scores.grad_fn], stop) if node in roots}


def _sums_channels(node: Node, channels: Collection[int], roots: Collection[Node]) -> bool:
    """Whether an operation of the scores sums channels, of which there are so many, with weights: a product written.

    At each position, or of pooled features with any weights or none (a norm, a distance).
    """
    if not _named(node, (*_REDUCES, *_DISTANCES)) or not (sizes := _sizes_of_input(node)):
        return False
    # Negative axes are stored modulo 2**64.
    dims = getattr(node, "_saved_dim", None) or ()
    axes = {(d - (1 << 64) * (d >> 63)) % len(sizes) for d in ((dims,) if isinstance(dims, int) else dims)}
    axis = next((axis for axis in sorted(axes) or range(len(sizes)) if sizes[axis] in channels), None)
    if axis is None or _is_mean_of_bins(node):
        return False
    before = node.next_functions[0][0]
    factors = [node for node, _ in before.next_functions] if before is not None and "Mul" in before.name() else []
    if None in factors:
        weights = before._saved_self if factors[0] is None else before._saved_other  # type: ignore[union-attr]
        return isinstance(weights, torch.Tensor) and not _picks(weights, axis - len(sizes))
    if sizes[axis] in (sizes.numel(), sizes[1:].numel()):
        return True
    return bool(factors) and not set.intersection(*({*nodes_behind([factor])} & {*roots} for factor in factors))


def _summed_by_product(node: Node) -> int | None:
    """How many terms the sums of a matrix product have; None if that is not known."""
    for name, axis in (("_saved_mat2", -2), ("_saved_batch2", -2), ("_saved_vec", -1), ("_saved_tensor", -1)):
        factor = getattr(node, name, None)
        if factor is not None:
            return int(factor.shape[axis])
    factor = getattr(node, "_saved_self", None)
    return None if factor is None else int(factor.shape[-1])


def _sizes_of_input(node: Node) -> torch.Size:
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    if sizes is None and getattr(node, "_saved_self", None) is not None:
        sizes = node._saved_self.shape  # type: ignore[attr-defined]
    return torch.Size(sizes or ())


def _picks(weights: Tensor, axis: int) -> bool:
    """Whether weights pick one channel at most (on this axis), or are the same for all."""
    if weights.dim() < -axis or weights.shape[axis] == 1:
        return True
    return bool(((weights != 0).sum(axis) <= 1).all())


def _is_mean_of_bins(node: Node) -> bool:
    """Whether the operation sums fixed numbers with the weights of a softmax: a prediction made of bins."""
    before = _only_input(node) if _named(node, (*_MIXES_CHANNELS, "Mean", "SumBackward")) else None
    while before is not None and "Softmax" not in before.name():
        before = None if _mixes_channels(before) or _named(before, _REDUCES) else _only_input(before)
    return before is not None


def _only_input(node: Node) -> Node | None:
    """The node before, if all other inputs are fixed."""
    inputs = [before for before, _ in node.next_functions if before is not None and not _is_parameter(before)]
    return inputs[0] if len(inputs) == 1 else None


def _is_sum_of_several(node: Node) -> bool:
    return _named(node, ("AddBackward", "MulBackward")) and _only_input(node) is None


def _is_parameter(node: Node) -> bool:
    while len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return isinstance(getattr(node, "variable", None), nn.Parameter)


def _ends_a_part(node: Node) -> bool:
    return (_mixes_channels(node) or _named(node, _REDUCES)) and not _is_mean_of_bins(node)


def _mixes_channels(node: Node) -> bool:
    return _named(node, _MIXES_CHANNELS) and not _convolves_each_channel(node)


def _convolves_each_channel(node: Node) -> bool:
    """Whether the node is a convolution of each channel for itself: a blur, or a resize."""
    weight = getattr(node, "_saved_weight", None) if "Convolution" in node.name() else None
    return weight is not None and weight.shape[:2] == (node._saved_groups, 1)  # type: ignore[attr-defined]


def _named(node: Node, words: tuple[str, ...]) -> bool:
    return _has_one_of(node.name(), words)


@cache
def _has_one_of(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)
