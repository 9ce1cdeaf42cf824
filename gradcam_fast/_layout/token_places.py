"""What the graph of a trial run tells of tokens: which come from the images, and whether in the order of their grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .feature_layout import FeatureLayout
    from .token_grid import PatchTokens

__all__ = ["ImageLeaf", "first_tokens", "in_image_order", "tokens_of_images"]

# Parts of the names of autograd nodes: fused attention, and what other attention puts its weights through.
_ATTENTION = ("ScaledDotProduct", "Softmax")
# What other tokens add to the gradient of one token's place, at most, as a share of its square.
_UNMIXED = 1e-2
# How far the row found at a place is off, mostly, where its patch overlaps with the next by half or less.
_OVERLAP = 0.6
# The share of the places that must be unmixed to tell an order, and of which some patch must come.
_MOST = 0.9


class ImageLeaf(NamedTuple):
    """A leaf of the graph behind a map that depends on the images.

    Attributes:
        values: the images themselves, or what stands for an earlier map.
        layout: of that map; None for images.
    """

    values: Tensor
    layout: FeatureLayout | None

    def as_maps(self, values: Tensor) -> Tensor:
        """Values of this leaf as (B,C,h,w)."""
        return values if self.layout is None else self.layout(values)


def first_tokens(maps: Tensor, leaves: Sequence[ImageLeaf]) -> GradientEdge | None:
    """Where in the graph behind them the tokens come from, as many and as long: before something mixed them all."""
    wanted = {id(leaf.values) for leaf in leaves}
    shape = tuple(maps.shape)
    alike = [node for node in _nodes_behind(maps.grad_fn) if node is not maps.grad_fn and _shape_of(node) == shape]
    for node in alike:
        behind = set(_nodes_behind(node)) - {node}
        is_of_images = any(id(getattr(before, "variable", None)) in wanted for before in behind)
        if is_of_images and behind.isdisjoint(alike):
            return GradientEdge(node, 0)
    return None


def _shape_of(node: Node) -> tuple[int, ...] | None:
    """The shape of what a node returned; None of several tensors."""
    returned: Any = getattr(node, "_input_metadata", ())
    return tuple(returned[0].shape) if len(returned) == 1 else None


def _nodes_behind(root: Node | None) -> list[Node]:
    nodes, seen = [root] if root is not None else [], {root}
    for node in nodes:  # grows
        for behind, _ in node.next_functions:
            if behind is not None and behind not in seen:
                seen.add(behind)
                nodes.append(behind)
    return nodes


def tokens_of_images(
    maps: Tensor, axis: int, leaves: Sequence[ImageLeaf], at: GradientEdge | None = None
) -> tuple[int, ...] | None:
    """The tokens that change with some positions of the images: where the Jacobian times a vector is not zero.

    None, if that cannot be told because attention has mixed the tokens before.

    Args:
        at: where in the graph to ask, instead of at the maps.
    """
    edge = at or _edge(maps)
    nodes = _nodes_behind(edge.node if edge else None)
    in_graph = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    leaves = [leaf for leaf in leaves if id(leaf.values) in in_graph]
    if not leaves or edge is None or _attends(edge.node, leaves):
        return None
    # The product of the Jacobian is the gradient of its transposed product, which is linear in these.
    cotangent = torch.zeros_like(maps, requires_grad=True)
    transposed = torch.autograd.grad(
        edge, [leaf.values for leaf in leaves], cotangent, create_graph=True, retain_graph=True
    )
    others = [other for other in range(maps.dim()) if other != axis]

    def changed_by(directions: list[Tensor]) -> Tensor:
        total = torch.stack([(part * way).sum() for part, way in zip(transposed, directions, strict=True)]).sum()
        return torch.autograd.grad(total, cotangent, retain_graph=True)[0].abs().sum(others) != 0

    # What came through class tokens of an earlier map is of no position.
    everywhere = [
        leaf.layout.only_positions(torch.randn_like(part)) if leaf.layout else torch.randn_like(part)
        for leaf, part in zip(leaves, transposed, strict=True)
    ]
    first, last = (
        [_at_position(way, leaf.as_maps, end) for way, leaf in zip(everywhere, leaves, strict=True)] for end in (0, -1)
    )
    try:
        # A token that changes with the first position and with the last is of all of them, a mean say: no patch.
        changes = changed_by(everywhere) & ~(changed_by(first) & changed_by(last))
    except RuntimeError:  # an operation without a second derivative
        return None
    return tuple(changes.nonzero()[:, 0].tolist())


def _edge(maps: Tensor) -> GradientEdge | None:
    return get_gradient_edge(maps) if maps.requires_grad else None


def _attends(root: Node, leaves: Sequence[ImageLeaf]) -> bool:
    """Whether attention stands between the leaves and a node; a second derivative of it takes long, or fails."""
    wanted = {id(leaf.values) for leaf in leaves}
    uses: dict[Node, list[Node]] = {}
    pending, found, seen = [root], [], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) in wanted:
            found.append(node)
        for behind, _ in node.next_functions:
            if behind is not None:
                uses.setdefault(behind, []).append(node)
                pending.append(behind)
    between: set[Node] = set()
    while found:
        node = found.pop()
        if node not in between:
            between.add(node)
            found.extend(uses.get(node, ()))
    return any(word in node.name() for node in between for word in _ATTENTION)


def in_image_order(
    maps: Tensor, axis: int, patches: PatchTokens, leaves: Sequence[ImageLeaf], at: GradientEdge | None = None
) -> bool | None:
    """Whether each patch comes from its own place in the images; None where places are mixed, and that is not known.

    Every patch sends a random gradient back, and then as many times the same as its row, its column. At a place that
    belongs to one patch alone, the ratio of the two is that patch's row and column.

    Args:
        at: where in the graph to ask, instead of at the maps.
    """
    edge = at or _edge(maps)
    if edge is None:
        return None
    device, grid = maps.device, patches.grid
    places = torch.tensor(patches.places, device=device)
    seed = torch.zeros_like(maps)
    patch_shape = [len(places) if other == axis else side for other, side in enumerate(maps.shape)]
    seed.index_copy_(axis, places, torch.randn(patch_shape, device=device).to(maps.dtype))
    sides = torch.stack(torch.meshgrid(*(torch.arange(1, side + 1, device=device) for side in grid), indexing="ij"))
    plain = _at_leaves(edge, seed, leaves)
    squares = _sum_of_cells(plain, plain, leaves, grid)
    if squares is None or not squares.any():
        return None
    seen = squares > 0
    if seen.double().mean() < _MOST:
        return False  # some places were left out
    in_order, unmixed, follows = torch.ones_like(seen), torch.ones_like(seen), True
    for numbers in sides:
        factor = torch.ones(maps.shape[axis], device=device, dtype=maps.dtype)
        factor[places] = numbers.flatten().to(maps.dtype)
        numbered = _at_leaves(edge, seed * factor.reshape([-1 if other == axis else 1 for other in range(3)]), leaves)
        products, numbered_squares = (_sum_of_cells(numbered, other, leaves, grid) for other in (plain, numbered))
        assert products is not None and numbered_squares is not None
        found = products / squares
        in_order &= (found - numbers).abs() < 0.5
        follows &= _follows(found[seen], numbers[seen].double())
        unmixed &= 1 - products.square() / (squares * numbered_squares) < _UNMIXED
    if unmixed[seen].double().mean() < _MOST:
        return True if follows else None
    return bool(in_order[seen & unmixed].all())


def _follows(found: Tensor, numbers: Tensor) -> bool:
    """Whether rows (or columns) found at mixed places rise with their numbers, as those of overlapping patches do."""
    deviations = numbers - numbers.mean()
    slope = (deviations * found).sum() / deviations.square().sum().clamp(min=1)
    return len(numbers.unique()) == 1 or bool(slope > 0.5 and (found - numbers).abs().median() < _OVERLAP)


def _at_leaves(edge: GradientEdge, cotangent: Tensor, leaves: Sequence[ImageLeaf]) -> list[Tensor]:
    values = [leaf.values for leaf in leaves]
    parts = torch.autograd.grad(edge, values, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(values, parts, strict=True)]


def _sum_of_cells(
    first: Sequence[Tensor], second: Sequence[Tensor], leaves: Sequence[ImageLeaf], grid: tuple[int, ...]
) -> Tensor | None:
    """The scalar products of two gradients in each cell of the grid; None if no leaf has so many positions."""
    total = None
    for one, other, leaf in zip(first, second, leaves, strict=True):
        one, other = leaf.as_maps(one), leaf.as_maps(other)
        if one.dim() != len(grid) + 2 or any(side < few for side, few in zip(one.shape[2:], grid, strict=True)):
            continue
        wide = torch.promote_types(one.dtype, torch.float32)
        sums = (one.to(wide) * other.to(wide)).sum((0, 1), dtype=torch.float64)
        for axis, few in enumerate(grid):
            cells = torch.arange(sums.shape[axis], device=sums.device) * few // sums.shape[axis]
            shape = [few if at == axis else side for at, side in enumerate(sums.shape)]
            sums = sums.new_zeros(shape).index_add_(axis, cells, sums)
        total = sums if total is None else total + sums
    return total


def _at_position(values: Tensor, view: Callable[[Tensor], Tensor], end: int) -> Tensor:
    """The values at the first (0) or last (-1) position of feature maps; zeros elsewhere."""
    kept = torch.zeros_like(values)
    place = (slice(None), slice(None)) + (end,) * (view(kept).dim() - 2)
    view(kept)[place] = view(values)[place]
    return kept
