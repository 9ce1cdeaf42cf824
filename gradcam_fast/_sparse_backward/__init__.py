"""A backward pass that does not multiply zeros, where there may be enough of them to make that worthwhile.

A head that reads the class token sends a gradient to this token alone, and to this token alone it goes back until the
attention of the last block spreads it. And what goes back to few images through a large linear layer, as VGG's and
AlexNet's are, is decided by reading the layer's weight, of which half or more meets the zeros of hidden units that a
ReLU has silenced. Zero times infinity or NaN counts as zero here. Knows nothing of models.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import GradientEdge

from ..ops import skinny_mm
from . import arithmetic, attention, moves, products  # noqa: F401 (what they know of PyTorch's operations)
from .blocks import Blocks, bundle, made, written_out

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["without_zeros", "worthwhile"]

# Among how many operations nearest to the scores a large layer is looked for.
_NEAR = 16


def worthwhile(start: Tensor | GradientEdge, activations: Sequence[Tensor], count: int) -> bool:
    """Whether that is tried: on the CPU, whose attention it knows and where the numbers of a ReLU can be looked at.

    And only if all activations are tokens (B,N,C), or if the gradients of ``count`` scores go from ``start`` through a
    large linear layer.
    """
    return all(each.is_cpu for each in activations) and (
        all(each.dim() == 3 for each in activations)
        or (activations[0].dtype == torch.float32 and _large_layer_near(start, count))
    )


def without_zeros(
    start: Tensor | GradientEdge, sources: Sequence[Tensor | GradientEdge], seeds: Tensor
) -> list[Tensor] | None:
    """The gradients (K,...) of the sources for K seeds (K,...) at the start, in one backward; None if it fails.

    The graph is kept, so that it can be walked as ever then.
    """
    try:
        with made() as references:
            gradients = _gradients(start, sources, seeds)
    except Exception:  # a hook or function of the model's own may want memory, or to know something of each target
        gradients = None
    if any(each() is not None for each in references):
        _take_back()
        return None
    return gradients


def _take_back() -> None:
    """What was kept shall be PyTorch's own: ``.grad`` of a tensor that retains it will come anew, others stay."""
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and (each.is_leaf or each.retains_grad):
            if isinstance(each.grad, Blocks):
                each.grad = written_out(each.grad).sum(0) if each.is_leaf else None


def _gradients(
    start: Tensor | GradientEdge, sources: Sequence[Tensor | GradientEdge], seeds: Tensor
) -> list[Tensor] | None:
    found = torch.autograd.grad(
        start,
        sources,  # type: ignore[arg-type] # tensors and edges, mixed
        bundle(seeds),
        retain_graph=True,
        allow_unused=True,
    )
    # A hook may have put another tensor in their place, and a score need not depend on a layer.
    whole = [written_out(each) for each in found if isinstance(each, Blocks) and each.targets == len(seeds)]
    return whole if len(whole) == len(found) else None


def _large_layer_near(start: Tensor | GradientEdge, count: int) -> bool:
    first = start.node if isinstance(start, GradientEdge) else start.grad_fn
    nodes = [] if first is None else [first]
    for node in nodes:
        if node.name() in ("AddmmBackward0", "MmBackward0"):
            inputs, outputs = node._saved_mat2_sym_sizes  # type: ignore[attr-defined]
            if skinny_mm.pays(count, (outputs, inputs)):
                return True
        nodes += [each for each, _ in node.next_functions if each is not None and each not in nodes]
        if len(nodes) > _NEAR:
            break
    return False
