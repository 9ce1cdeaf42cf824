"""One request about a batch, and its capture: one forward, the scores, and their gradients at the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import nn

from .._layout.feature_layout import FeatureLayout, ImageGeometry, infer_layout
from .._layout.token_grid import UnknownPatches, UnreadableLayout
from .._model.eager import force_eager
from ..exceptions import NotSpatial
from .buffers import preserve_buffers
from .calls import ExplainedCalls, every_picture, explained_calls
from .containers import detach_tensors, tensors_in
from .gradients import PickedLogits, differentiate
from .hooks import count_hooks, forward_with_activations
from .image_selection import selected_images
from .scores import in_range, pick_logits, scores_of

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.inputs import Inputs
    from .._model.target_layer import TargetLayer
    from ..types import Output, Tokens, When

__all__ = ["Capture", "Request", "capture"]


@dataclass(frozen=True)
class Request:
    """The arguments of one call about one batch, all checked.

    Attributes:
        may_look_at_classes: whether the values of classes on the CPU may be looked at; in a trace they have none.
        batched_backward: whether one backward may compute the gradients of all targets of an image. A trace for any
            number of images sets it False where an operation's batched form would fix that number.
    """

    inputs: Inputs
    geometry: ImageGeometry
    target: Any
    topk: int | None
    output: Output | None
    tokens: Tokens
    when: When | None = None
    may_look_at_classes: bool = True
    batched_backward: bool = True

    def scores(self, returned: Any) -> tuple[Any, Tensor, Tensor | None]:
        """From the model's output: its logits, the scores to explain and their classes."""
        takes_whole_output = callable(self.target) and self.output is None
        logits = returned if takes_whole_output else pick_logits(returned, self.output)
        batch, may_look = self.geometry.batch, self.may_look_at_classes
        return logits, *scores_of(logits, self.target, self.topk, batch, may_look=may_look)

    def picked_logits(self, logits: Any, classes: Tensor | None) -> PickedLogits | None:
        """The logits (B,N) and classes, if each score is the logit of its class; None if that is not certain."""
        if classes is None or logits.dim() != 2:
            return None
        if isinstance(self.target, torch.Tensor) and not (
            self.may_look_at_classes and self.target.device.type == "cpu"
        ):
            return PickedLogits(logits, classes.clamp(0, logits.shape[1] - 1), in_range(classes, logits.shape[1]))
        return PickedLogits(logits, classes)

    def selected(self, logits: Any) -> Tensor | None:
        """The indices (n,) of the images to explain; None for all."""
        if self.when is None:
            return None
        with torch.no_grad():
            return selected_images(self.when, detach_tensors(logits), self.geometry.batch)

    def layout(self, module: nn.Module, maps: Tensor) -> FeatureLayout:
        """The layout of the feature maps that a module returned."""
        return infer_layout(module, maps, self.geometry, self.tokens)

    @property
    def images(self) -> Tensor:
        """The images among the model's inputs."""
        return self.inputs.images


@dataclass(frozen=True)
class Capture:
    """The results of one forward and backward.

    Attributes:
        logits: the model's own output, detached.
        scores: (B,) or (B,K), detached.
        target: the classes of the scores, or None for a callable target.
        layers: names of the layers, in the caller's order.
        activations: (B,C,h,w) of each layer, sorted by name; (B*T,C,h,w) where a layer has T maps a sample.
        gradients: (B[,K],C,h,w) or (B*T[,K],C,h,w) likewise; none if no image is selected.
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


# Models that turn gradients off around their trunk and restore the grad mode behind it: for their head to have a graph,
# their forward must begin with gradients on.
_NEED_GRAD_ENABLED: WeakSet[nn.Module] = WeakSet()


def capture(
    model: nn.Module,
    request: Request,
    layers: Sequence[TargetLayer],
    *,
    check_scores: Callable[[Tensor, Any], None] | None = None,
) -> Capture:
    """Run the model once, and differentiate the scores with respect to the layers' activations.

    Args:
        check_scores: called with the scores and what the model returned, both with their graph, before the backward; it
            may raise a LayerError.

    Raises:
        LayerError: a layer cannot be explained.
    """
    # A sum of floats depends on the order; the mean over several layers must not depend on the caller's order.
    ordered = sorted(layers, key=lambda layer: layer.name)
    recorded = ordered if request.geometry.pictures is None else list(map(every_picture, ordered))
    # The contexts include the backward, because a checkpointed part of the model runs again there.
    with torch.inference_mode(False), preserve_buffers(model) as module_hooks, force_eager():
        hooks_before = count_hooks()
        enable_grad = model in _NEED_GRAD_ENABLED
        returned, maps, copies = forward_with_activations(model, request.inputs, recorded, enable_grad=enable_grad)
        calls = [
            explained_calls(layer, of_layer, request, _layout) for layer, of_layer in zip(ordered, maps, strict=True)
        ]
        logits, scores, classes = request.scores(returned)
        if not (enable_grad or scores.requires_grad or any(tensor.requires_grad for tensor in tensors_in(logits))):
            enable_grad = True
            returned, maps, copies = forward_with_activations(model, request.inputs, recorded, enable_grad=True)
            logits, scores, classes = request.scores(returned)
        if check_scores is not None:
            check_scores(scores, returned)
        activations = [of_layer[i] for of_layer, explained in zip(maps, calls, strict=True) for i in explained.indices]
        handed_onward = [
            of_layer[i] for of_layer, explained in zip(copies, calls, strict=True) for i in explained.indices
        ]
        has_hooks = [module_hooks.backward or bool(copy._backward_hooks) or copy.retains_grad for copy in handed_onward]
        del handed_onward, copies, maps
        picked = None if module_hooks.backward else request.picked_logits(logits, classes)
        selected = request.selected(logits)
        any_selected = selected is None or len(selected) > 0
        hook_free = not any((*module_hooks, *has_hooks)) and count_hooks() == hooks_before
        of_calls = ordered
        if len(activations) != len(ordered):
            of_calls = [explained.layer for explained in calls for _ in explained.indices]
        gradients = []
        if any_selected:
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
                tuple(layer.name for layer in layers),
                _joined(calls, [tensor.detach() for tensor in activations]),
                _joined(calls, gradients) if any_selected else [],
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


def _layout(request: Request, layer: TargetLayer, maps: Tensor) -> FeatureLayout:
    try:
        return request.layout(layer.module, maps)
    except UnknownPatches:
        raise
    except UnreadableLayout as reason:
        raise NotSpatial(layer.name, maps.shape, request.geometry.batch, reason) from None
