"""The choice of the layers to explain: the last maps that dominate the scores and that no rule excludes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._capture.scores import as_class_logits, pick_logits
from .alignment import is_aligned
from .dominance import Dominators, dominators
from .model_output import output_leaves
from .rules import Candidate, excluding

if TYPE_CHECKING:
    from torch import Tensor

    from .._capture.request import Request
    from .trace import Trace
    from .traced_map import TracedMap

__all__ = ["Choice", "choose", "of_any_class"]


class Choice(NamedTuple):
    """The layers to explain.

    Attributes:
        maps: of the layers.
        has_gradient: whether their gradients are not zero (else only the graph speaks for them).
        dominates: whether all of the scores' dependence on the images' positions goes through them.
        behind: the maps behind the first of them that would do without the others.
    """

    maps: list[TracedMap]
    has_gradient: bool
    dominates: bool = True
    behind: Sequence[TracedMap] = ()


def choose(
    trace: Trace, returned: list[Tensor], channel_axes: Mapping[int, int], read: Tensor, scores: Tensor
) -> Choice:
    """The last map that dominates the scores, or the maps that do so together; no maps if there are none.

    Args:
        trace: of a trial run.
        returned: the tensors in what the model returned, with their graph.
        channel_axes: of those that are maps, by their place.
        read: what the scores read of that: themselves, or the logits of all classes.
        scores: (B,) or (B,K), with their graph.
    """
    maps = trace.of_images
    own = {id(leaf) for leaf in output_leaves(read, returned, channel_axes, trace.behind)}
    among_tokens = any(traced.layout.kind == "tokens" for traced in maps)
    asks_places = len(returned) != 1 or returned[0].dim() > 2

    def search(seed: float, reaches: Callable[[Tensor], object], without: str = "") -> Dominators:
        def qualifies(traced: TracedMap, gradient: Tensor) -> tuple[bool, bool]:
            by_rules = excluding(Candidate(traced, gradient, id(traced.leaf) in own, among_tokens, asks_places)) - {
                without
            }
            # A layer that runs on each band of an image, say: all calls together, if each sees the image as it lies.
            return not by_rules, by_rules <= {"earlier call"}

        return dominators(
            maps,
            scores,
            seed=seed,
            reaches=reaches,
            qualifies=qualifies,
            is_aligned=lambda traced: is_aligned(trace, traced),
        )

    for without in ("", "one place"):
        found, dominates, behind = search(1.0, torch.any, without)
        if found:
            return Choice(found, True, dominates, behind)
    # Zero times NaN is NaN: where zero weights stop every gradient, only what is not connected stays zero. A batch
    # without images, and a score that is zero for want of a detection, are connected all the same.
    for seed, reaches in ((torch.nan, torch.any), (1.0, lambda gradient: True)):
        found, _, behind = search(seed, reaches, without="rounding noise")
        if found:
            return Choice(found, False, behind=behind)
    return Choice([], False)


def of_any_class(request: Request, parts: Collection[Any], logits: Any, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and a score of all classes instead of some, if the class asked cannot matter; or the scores twice.

    It cannot if one operation makes all logits. Where several do (a coarse and a fine head in one tensor), classes that
    were named decide, and of the highest logits or the rivals of a class all decide, because the class predicted must
    not.
    """
    if not request.follows_prediction and (callable(request.target) or len(parts) > 1):
        return scores, scores
    class_logits = as_class_logits(pick_logits(logits, None), request.geometry.batch)
    numbers = torch.arange(1, class_logits.shape[1] + 1, dtype=torch.float32, device=class_logits.device)
    weights = numbers.cos().to(class_logits.dtype)
    return class_logits, class_logits @ weights
