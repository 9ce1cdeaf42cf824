"""The last feature map through which all of the score's dependence on the image's positions goes: a dominator.

A trial run cuts the graph at every feature map. The scores' gradient is then pushed back from map to map, the last map
first. Maps that wait for their turn and have gradient at their positions are the frontier: together they hold all that
the scores see of the images. A frontier of one map is a dominator. Where there is none (two trunks), the last maps of
all branches together are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .graph_walk import leaves_behind

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

    from .traced_map import TracedMap

__all__ = ["Dominators", "dominators", "graph_starts"]

# The place of the scores among the maps.
_SCORES = -1


class Dominators(NamedTuple):
    """The maps to explain.

    Attributes:
        maps: in execution order.
        dominate: whether no branch goes past them.
        behind: the maps behind the first of them that qualify, too, but do not dominate: of branches that the model may
            leave out.
    """

    maps: list[TracedMap]
    dominate: bool
    behind: list[TracedMap]


def dominators(
    maps: Sequence[TracedMap],
    scores: Tensor,
    *,
    seed: float,
    reaches: Callable[[Tensor], object],
    qualifies: Callable[[TracedMap, Tensor], tuple[bool, bool]],
    is_aligned: Callable[[TracedMap], bool],
) -> Dominators:
    """The last map that dominates the scores and qualifies, or the maps that do so together; empty if there are none.

    Where a branch without a map that qualifies goes past them, maps that qualify only together with others count, too,
    if all of these are aligned.

    What flows through class tokens counts only until it reaches positions: a gradient at a map's class tokens alone
    passes through, and where positions have gradient, that of the class tokens beside them goes no further.

    Args:
        maps: in execution order.
        scores: (B,) or (B,K), with their graph.
        seed: the gradient of the scores' sum.
        reaches: from the gradient (B,C,h,w) at a map's positions to whether it counts.
        qualifies: from a map and that gradient to whether the map can be explained, and whether together with others.
        is_aligned: whether a map may be laid on others.
    """
    sweep = _Sweep(maps, reaches, qualifies)
    only = sweep.run(scores.sum(), seed)
    if only is not None:
        return sweep.answer([only], True)
    found, dominates = sweep.together(sweep.qualified)
    if found and not dominates:
        with_others, dominates = sweep.together(sweep.with_others)
        dominates = dominates and all(map(is_aligned, with_others))
        found = with_others if dominates else found
    return sweep.answer(found, dominates)


class _Sweep:
    def __init__(
        self,
        maps: Sequence[TracedMap],
        reaches: Callable[[Tensor], object],
        qualifies: Callable[[TracedMap, Tensor], tuple[bool, bool]],
    ) -> None:
        self.maps, self.reaches, self.qualifies = maps, reaches, qualifies
        self.place_of = {id(traced.leaf): place for place, traced in enumerate(maps)}
        # Of the maps that wait for their turn: gradient, and the maps (or scores) whose positions it came from.
        self.gradients: dict[int, Tensor] = {}
        self.origins: dict[int, set[int]] = {}
        # Maps with gradient at their positions, behind each map.
        self.behind: dict[int, set[int]] = {}
        # Maps that qualify, and these and those that do so together with others.
        self.qualified: set[int] = set()
        self.with_others: set[int] = set()

    def run(self, total: Tensor, seed: float) -> TracedMap | None:
        """The last map that dominates and qualifies, as soon as it is found."""
        self.push(get_gradient_edge(total), torch.full_like(total, seed), {_SCORES})
        reached_the_images = False
        while self.gradients:
            place = max(self.gradients)
            gradient = self.gradients[place]
            positions = self.maps[place].layout(gradient)
            has_positions = bool(self.reaches(positions))
            qualifies, with_others = self.qualifies(self.maps[place], positions) if has_positions else (False, False)
            if with_others:
                self.with_others.add(place)
            if qualifies:
                self.qualified.add(place)
                if not reached_the_images and self.frontier() == [place] and not self.tokens_pass_by(place):
                    return self.maps[place]
            del self.gradients[place]
            if has_positions:
                gradient = self.maps[place].layout.only_positions(gradient)
            origins = {place} if has_positions else self.origins[place]
            behind = self.maps[place].behind
            if (behind is None or not self.push(behind, gradient, origins)) and has_positions:
                reached_the_images = True
        return None

    def push(self, root: GradientEdge, gradient: Tensor, origins: set[int]) -> bool:
        """Send a gradient from ``root`` to the maps directly behind; whether there are any."""
        arriving = self.arriving(root, gradient)
        for place, part in arriving or ():
            if self.reaches(self.maps[place].layout(part)):
                for origin in origins:
                    self.behind.setdefault(origin, set()).add(place)
            self.origins.setdefault(place, set()).update(origins)
            self.gradients[place] = self.gradients[place] + part if place in self.gradients else part
        return arriving is not None

    def arriving(self, root: GradientEdge, gradient: Tensor) -> list[tuple[int, Tensor]] | None:
        """The gradients that arrive from ``root`` at the maps directly behind; None if there are no such maps."""
        leaves = [leaf for leaf in leaves_behind(root.node) if id(leaf) in self.place_of]
        if not leaves:
            return None
        with torch.autograd.set_detect_anomaly(False):
            parts = torch.autograd.grad(root, leaves, gradient, allow_unused=True, retain_graph=True)
        pairs = zip(leaves, parts, strict=True)
        return [(self.place_of[id(leaf)], part) for leaf, part in pairs if part is not None]

    def tokens_pass_by(self, place: int) -> bool:
        """Whether class tokens that wait lead to positions of other maps than those that this map is made of.

        Those of the blocks before do not; those of another trunk do.
        """
        made_of = _ancestors({place}, _places_behind(self.maps))
        pending = {other: part for other, part in self.gradients.items() if other not in made_of}
        while pending:
            other, gradient = pending.popitem()
            behind = self.maps[other].behind
            for earlier, part in (behind and self.arriving(behind, gradient)) or ():
                if earlier in made_of or not part.any():
                    continue
                if self.reaches(self.maps[earlier].layout(part)):
                    return True
                pending[earlier] = pending[earlier] + part if earlier in pending else part
        return False

    def answer(self, found: list[TracedMap], dominates: bool) -> Dominators:
        first = min((self.place_of[id(traced.leaf)] for traced in found), default=len(self.maps))
        behind = [self.maps[place] for place in sorted(self.qualified | self.with_others) if place > first]
        return Dominators(found, dominates, [traced for traced in behind if traced not in found])

    def frontier(self) -> list[int]:
        return [place for place, part in self.gradients.items() if self.reaches(self.maps[place].layout(part))]

    def together(self, qualified: set[int]) -> tuple[list[TracedMap], bool]:
        """The last qualified maps of all branches, but for those that all of the branches of others lead to.

        Also, whether no branch goes past them.
        """
        last = self.last_of(qualified, _SCORES)
        for place in sorted(last):
            if len(last) > 1 and not self.bypasses(place, last - {place}):
                last.remove(place)
        return [self.maps[place] for place in sorted(last)], not self.bypasses(_SCORES, last)

    def last_of(self, qualified: set[int], place: int) -> set[int]:
        last: set[int] = set()
        for behind in self.behind.get(place, ()):
            last |= {behind} if behind in qualified else self.last_of(qualified, behind)
        return last

    def bypasses(self, place: int, others: set[int]) -> bool:
        """Whether a way from this map to the images goes through none of the others."""
        pending, seen = [place], set(others)
        while pending:
            earlier = pending.pop()
            behind = self.behind.get(earlier, set())
            if not behind:
                return True
            pending.extend(behind - seen)
            seen |= behind
        return False


def graph_starts(maps: Sequence[TracedMap], nodes: Iterable[Node], chosen: Sequence[TracedMap]) -> list[TracedMap]:
    """Where a graph has to begin that is to hold all nodes; none if it does that already when it begins at ``chosen``.

    The last map that all nodes are made of, or else the first maps of all. Nodes that no map leads to do not count.
    """
    place_of = {id(traced.leaf): place for place, traced in enumerate(maps)}

    behind = _places_behind(maps)
    inputs = [before for node in nodes for before, _ in node.next_functions]
    ends = [places for node in inputs if (places := _places_of(node, place_of))]
    wanted = {place_of[id(traced.leaf)] for traced in chosen}
    if all(_ancestors(places, behind) & wanted for places in ends):
        return []
    pending = set[int]().union(*ends)
    firsts: set[int] = set()
    while pending:
        place = max(pending)
        if pending == {place} and not firsts:
            return [maps[place]]
        pending.remove(place)
        pending |= behind[place]
        if not behind[place]:
            firsts.add(place)
    return [maps[place] for place in sorted(firsts)]


def _places_behind(maps: Sequence[TracedMap]) -> list[set[int]]:
    """The places of the maps directly behind each map."""
    place_of = {id(traced.leaf): place for place, traced in enumerate(maps)}
    return [_places_of(traced.behind.node if traced.behind else None, place_of) for traced in maps]


def _places_of(node: Node | None, place_of: Mapping[int, int]) -> set[int]:
    return {place_of[id(leaf)] for leaf in leaves_behind(node) if id(leaf) in place_of}


def _ancestors(places: set[int], behind: Sequence[set[int]]) -> set[int]:
    pending, ancestors = set(places), set(places)
    while pending:
        earlier = behind[pending.pop()] - ancestors
        ancestors |= earlier
        pending |= earlier
    return ancestors
