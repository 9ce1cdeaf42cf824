"""The capture of a request: one forward, the scores, and their gradients at the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from .._model.eager import force_eager
from .._model.undo import outside_inference_mode
from ..exceptions import LayerNotRun
from .buffers import preserve_buffers
from .calls import ExplainedCalls, every_picture, explained_calls
from .containers import detach_tensors, tensors_in
from .gradients import differentiate
from .hooks import count_hooks, forward_with_activations
from .kept_graphs import forget_graphs

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.target_layer import TargetLayer
    from .module_runs import ModuleRuns
    from .request import Request

__all__ = ["Capture", "capture"]


@dataclass(frozen=True)
class Capture:
    """The results of one forward and backward.

    Attributes:
        logits: the model's own output, detached.
        scores: (B,) or (B,K), detached.
        target: the classes of the scores, or None for a callable target.
        layers: names of the layers, in the caller's order.
        activations: (B,C,h,w) of each layer, sorted by name; (B*T,C,h,w) where a layer has T maps a sample.
        gradients: (B[,K],C,h,w) or (B*T[,K],C,h,w) likewise; none if no image is selected, or none are needed.
        selected: indices (n,) of the images to explain; None for all.
        layer_remembered: whether the layer was found for an earlier request.
        calls: the calls of each layer that they are of, sorted by name.
    """

    logits: Any
    scores: Tensor
    target: Tensor | None
    layers: tuple[str, ...]
    activations: list[Tensor]
    gradients: list[Tensor]
    selected: Tensor | None
    layer_remembered: bool = False
    calls: Sequence[ExplainedCalls] = ()

    @property
    def all_scores_have_gradient(self) -> bool:
        """Whether each score has a gradient that is not zero at some layer; also where none was computed."""
        axes = self.scores.dim()
        found = [gradients.flatten(axes).any(axes) for gradients in self.gradients]
        return not found or bool(torch.stack(found).any(0).all())


# Models that turn gradients off around their trunk and restore the grad mode behind it: for their head to have a graph,
# their forward must begin with gradients on.
_NEED_GRAD_ENABLED: WeakSet[nn.Module] = WeakSet()

# Layers, by name, at which the logits were found not to be an affine function of the activations. The graph that tells
# it has the memory of the head for all images of the batch, and is spared from then on.
_NOT_AFFINE: WeakKeyDictionary[nn.Module, set[tuple[str, ...]]] = WeakKeyDictionary()


def capture(
    model: nn.Module,
    request: Request,
    layers: Sequence[TargetLayer],
    *,
    choose: Callable[[Any, Tensor, Any], Sequence[TargetLayer]] | None = None,
    runs: ModuleRuns | None = None,
) -> Capture:
    """Run the model once, and differentiate the scores with respect to the layers' activations.

    Args:
        choose: called with the logits, the scores and what the model returned, with their graph, before the backward:
            which of the layers are explained; the others need not have run. It may raise a LayerError. None explains
            all.
        runs: notes which of its modules run.

    Raises:
        LayerError: a layer cannot be explained.
    """
    # A sum of floats depends on the order; the mean over several layers must not depend on the caller's order.
    ordered = sorted(layers, key=lambda layer: layer.name)
    recorded = ordered if request.geometry.pictures is None else list(map(every_picture, ordered))
    names = tuple(layer.name for layer in layers)
    needs = request.needs
    # What a callable makes of the output may be affine for one and not for another.
    remembers = choose is None and not callable(request.target) and request.output is None
    asks_affine = needs.affine and not (remembers and names in _NOT_AFFINE.get(model, ()))
    # Found layers are checked by the graph of the scores.
    graph = needs.gradients or asks_affine or choose is not None
    # The contexts include the backward, because a checkpointed part of the model runs again there.
    with (
        outside_inference_mode(),
        preserve_buffers(model) as module_hooks,
        forget_graphs(model, names, restore=False),
        force_eager(),
    ):
        hooks_before = count_hooks()
        enable_grad = model in _NEED_GRAD_ENABLED
        run = partial(
            forward_with_activations,
            model,
            request.inputs,
            recorded,
            has_hooks=module_hooks.forward,
            runs=runs,
            may_be_idle=choose is not None,
        )
        returned, maps, copies = run(enable_grad=enable_grad and graph, graph=graph)
        if choose is None:
            calls = explained_calls(ordered, maps, request)
        logits, scores, classes = request.scores(returned)
        has_graph = scores.requires_grad or any(tensor.requires_grad for tensor in tensors_in(logits))
        if needs.gradients and not (enable_grad or has_graph):
            enable_grad = True
            returned, maps, copies = run(enable_grad=True)
            logits, scores, classes = request.scores(returned)
        if choose is not None:
            layers = choose(logits, scores, returned)
            names = tuple(dict.fromkeys(layer.name for layer in layers))  # several calls of one layer
            places = [place for place, layer in enumerate(ordered) if layer in layers]
            ordered = [ordered[place] for place in places]
            maps, copies = ([of_layers[place] for place in places] for of_layers in (maps, copies))
            for layer, of_layer in zip(ordered, maps, strict=True):
                if not of_layer:
                    raise LayerNotRun(layer.name)
            calls = explained_calls(ordered, maps, request)
        activations = [of_layer[i] for of_layer, explained in zip(maps, calls, strict=True) for i in explained.indices]
        handed_onward = [
            of_layer[i] for of_layer, explained in zip(copies, calls, strict=True) for i in explained.indices
        ]
        has_hooks = [module_hooks.backward or bool(copy._backward_hooks) or copy.retains_grad for copy in handed_onward]
        del handed_onward, copies, maps
        picked = None if module_hooks.backward else request.picked_logits(logits, classes)
        selected = request.selected(logits)
        any_selected = selected is None or len(selected) > 0
        differentiates = any_selected and needs.gradients
        if any_selected and asks_affine and not needs.gradients:
            differentiates = request.are_affine(scores, logits, activations)
            if remembers and not differentiates:
                _NOT_AFFINE.setdefault(model, set()).add(names)
        hook_free = not any((*module_hooks, *has_hooks)) and count_hooks() == hooks_before
        of_calls = ordered
        if len(activations) != len(ordered):
            of_calls = [explained.layer for explained in calls for _ in explained.indices]
        gradients = []
        if differentiates:
            gradients = differentiate(
                scores,
                activations,
                of_calls,
                has_hooks,
                picked,
                hook_free=hook_free,
                may_batch=request.batched_backward,
            )
        if enable_grad:
            _NEED_GRAD_ENABLED.add(model)
        with torch.no_grad():
            return Capture(
                detach_tensors(logits),
                scores.detach(),
                classes,
                names,
                _joined(calls, [tensor.detach() for tensor in activations]),
                _joined(calls, gradients) if differentiates else [],
                selected,
                calls=calls,
            )


def _joined(calls: Sequence[ExplainedCalls], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Activations or gradients of all calls, joined to one tensor for each layer."""
    if len(tensors) == len(calls):
        return [explained.layouts[0](tensor) for explained, tensor in zip(calls, tensors, strict=True)]
    joined, first = [], 0
    for explained in calls:
        last = first + len(explained.indices)
        joined.append(explained.join(tensors[first:last]))
        first = last
    return joined
