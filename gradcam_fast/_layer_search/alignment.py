"""Whether a map shows the whole image as it lies: no part of it, nothing mirrored, turned or transposed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from .._layout.token_grid import NoPatches
from ..exceptions import NoLayerFound
from .graph_walk import leaves_behind

if TYPE_CHECKING:
    from .trace import Trace
    from .traced_map import TracedMap

__all__ = ["aligned_calls", "is_aligned", "refuse_turned_tokens"]

# How far from its place (as a part of the side) the middle of what a position sees may lie: borders cut off some of it.
_TOLERANCE = 0.25
# How much of the way to the other end of the side the middle lies at least, where that end is seen instead; half of it
# where a position sees all of the image.
_OTHER_END = 0.75

_TURNS = "mirrors, turns or transposes the images before its first feature map"


def is_aligned(trace: Trace, traced: TracedMap) -> bool:
    """Whether the first maps behind this one see the images where their corners are.

    The layers between run in the same way in every call; only what they take may be a part, or lie otherwise.

    Args:
        trace: of the trial run that made the map.
        traced: the map.
    """
    firsts = list(_first_maps(trace, traced))
    return None not in firsts and all(first is not None and _sees_all(trace, first) for first in firsts)


def aligned_calls(trace: Trace, found: Sequence[TracedMap], *, dominate: bool) -> list[TracedMap]:
    """The maps found; where these are of some views only, and of mirrored ones, those of the last view that is not.

    Args:
        found: the maps of a trial run that are to be explained.
        dominate: whether all that the scores see goes through these maps.

    Raises:
        NoLayerFound: the model mirrors or turns the images.
    """
    aligned = []
    for traced in found:
        calls = [traced]
        if not dominate:
            calls += [other for other in reversed(trace.of_images) if other.module is traced.module]
        as_it_lies = next((call for call in calls if not _is_turned(trace, call)), None)
        if as_it_lies is None:
            refuse_turned_tokens(trace)
            raise NoLayerFound(
                f"the model {_TURNS}, so that no heatmap would lie on them; take that step out of the model, or name a "
                "layer with layer=... and give tokens= a callable that turns its maps back"
            )
        aligned.append(as_it_lies)
    return aligned


def refuse_turned_tokens(trace: Trace) -> None:
    """Replace what a trial run has told of tokens, if the model mirrors or turns the images."""
    known = trace.request.geometry.patch_tokens
    if known and trace.of_images and _is_turned(trace, trace.of_images[-1]):
        for count in known:
            known[count] = NoPatches(
                f"of a model that {_TURNS}; give tokens= a callable that turns them back, (B,C,h,w)", lost=True
            )


def _is_turned(trace: Trace, traced: TracedMap) -> bool:
    """Whether all first maps behind this one see another corner of the images than their own."""
    size = trace.request.geometry.size
    sides = trace.images.shape[-len(size) :]
    if traced.layout.kind == "callable" or size not in (tuple(sides), tuple(sides[::-1])):
        return False
    firsts = [first for first in _first_maps(trace, traced) if first is not None]
    try:
        return bool(firsts) and all(_sees_another_corner(trace, first) for first in firsts)
    except RuntimeError:  # a part that cannot be differentiated by itself, such as a reentrant checkpoint
        return False


def _first_maps(trace: Trace, traced: TracedMap) -> Iterator[TracedMap | None]:
    """The maps behind this one that are made of the images themselves; None for each that is made of nothing."""
    by_leaf = {id(earlier.leaf): earlier for earlier in trace.of_images}
    pending, seen = [traced], {traced}
    while pending:
        earlier = pending.pop()
        if earlier.behind is None:
            yield None
            continue
        leaves = leaves_behind(earlier.behind.node)
        if any(leaf is trace.images for leaf in leaves):
            yield earlier
        pending.extend(before for leaf in leaves if (before := by_leaf.get(id(leaf))) and before not in seen)
        seen.update(pending)


def _sees_all(trace: Trace, traced: TracedMap) -> bool:
    # NaN, where nothing is seen, is not near.
    return all(distance < _TOLERANCE for corner in (0, -1) for distance, _ in _distances(trace, traced, corner))


def _sees_another_corner(trace: Trace, traced: TracedMap) -> bool:
    """Whether the middle of what one corner sees is near the other end of some side; NaN is near to nothing."""
    return any(distance > _OTHER_END * (1 - 1 / count) for distance, count in _distances(trace, traced, 0) if count > 1)


def _distances(trace: Trace, traced: TracedMap, corner: int) -> Iterator[tuple[float, int]]:
    """For each side of the images, how far the middle of what a corner of the map sees lies from that corner.

    As a part of the side, and with how many positions the map has there.

    Args:
        corner: 0 for the first end of the first side, the last of the second ..., which is another one in transposed
            images; -1 for the corner opposite.
    """
    assert traced.behind is not None
    sides = traced.layout(traced.leaf).shape[2:]
    ends = tuple(corner if axis % 2 == 0 else -1 - corner for axis in range(len(sides)))
    gradient = torch.zeros(traced.shape, dtype=traced.leaf.dtype, device=traced.leaf.device)
    at_end = traced.layout(gradient)
    for end in reversed(ends):
        at_end = at_end.select(-1, end)
    at_end.copy_(torch.randn_like(at_end))
    (part,) = torch.autograd.grad(traced.behind, trace.images, gradient, retain_graph=True)
    seen = part.abs_().flatten(0, -1 - len(sides))
    # Maps of spectrograms (B,T,F) that a model is known to turn are turned back.
    seen = seen.mT if trace.request.geometry.transposed else seen
    for axis, (count, end) in enumerate(zip(sides, ends, strict=True)):
        along = seen.sum([other for other in range(seen.dim()) if other != axis + 1], dtype=torch.float64)
        places = (torch.arange(len(along), dtype=along.dtype, device=along.device) + 0.5) / len(along)
        yield abs(float((along * places).sum() / along.sum()) - abs(0.5 / count + end)), count
