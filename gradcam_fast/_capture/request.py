"""One request about a batch: what is asked of the model, all checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .._layout.feature_layout import FeatureLayout, ImageGeometry, infer_layout
from .affine import is_affine
from .containers import detach_tensors, slice_batch
from .gradients import PickedLogits
from .image_selection import selected_images
from .scores import as_class_logits, in_range, pick_logits, scores_of

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.inputs import Inputs
    from ..types import Output, Tokens, When

__all__ = ["Needs", "Request"]


class Needs(NamedTuple):
    """What a method needs of a capture.

    Attributes:
        gradients: the gradients of the scores at the layers. If False, no gradient is computed, and the scores need not
            have one.
        affine: the gradients where the scores are an affine function of the activations, if ``gradients`` is False.
        scores: the scores. If False, a model whose output has no logits can be explained, too.
    """

    gradients: bool = True
    affine: bool = False
    scores: bool = True


_GRADIENTS = Needs()


@dataclass(frozen=True)
class Request:
    """The arguments of one call about one batch, all checked.

    Attributes:
        needs: what the method needs of the capture.
        may_look_at_classes: whether the values of classes on the CPU may be looked at; in a trace they have none.
        batched_backward: whether one backward may compute the gradients of all targets of an image. A trace for any
            number of images sets it False where an operation's batched form would fix that number.
        variants: how many copies of the images, each changed in some way, the batch consists of, copy after copy. The
            target is that of the images of the first copy, and all copies are explained for its classes.
    """

    inputs: Inputs
    geometry: ImageGeometry
    target: Any
    topk: int | None
    output: Output | None
    tokens: Tokens
    when: When | None = None
    needs: Needs = _GRADIENTS
    variants: int = 1
    may_look_at_classes: bool = True
    batched_backward: bool = True

    def scores(self, returned: Any) -> tuple[Any, Tensor, Tensor | None]:
        """From the model's output: its logits, the scores to explain and their classes."""
        takes_whole_output = callable(self.target) and self.output is None
        if not self.needs.scores and self.target is None and self.topk is None:
            try:
                logits = pick_logits(returned, self.output)
                return logits, *self.score_logits(logits)
            except (TypeError, ValueError):  # boxes, masks, embeddings: nothing is asked of them
                return returned, self.images.new_full((self.geometry.batch,), torch.nan), None
        logits = returned if takes_whole_output else pick_logits(returned, self.output)
        return logits, *self.score_logits(logits)

    def score_logits(self, logits: Any) -> tuple[Tensor, Tensor | None]:
        """The scores to explain and their classes, from the logits (or from the output, of a callable target)."""
        total = self.geometry.batch
        if self.variants == 1:
            return scores_of(logits, self.target, self.topk, total, may_look=self.may_look_at_classes)
        count = total // self.variants
        if callable(self.target):
            parts = [slice_batch(logits, start, start + count, total) for start in range(0, total, count)]
            return torch.cat([scores_of(part, self.target, None, count)[0] for part in parts]), None
        class_logits = as_class_logits(logits, total)
        _, classes = scores_of(class_logits[:count], self.target, self.topk, count)
        assert classes is not None
        return scores_of(class_logits, classes.repeat(self.variants, *[1] * (classes.dim() - 1)), None, total)

    def picked_logits(self, logits: Any, classes: Tensor | None) -> PickedLogits | None:
        """The logits (B,N) and classes, if each score is the logit of its class; None if that is not certain."""
        if classes is None or logits.dim() != 2:
            return None
        if isinstance(self.target, torch.Tensor) and not (
            self.may_look_at_classes and self.target.device.type == "cpu"
        ):
            return PickedLogits(logits, classes.clamp(0, logits.shape[1] - 1), in_range(classes, logits.shape[1]))
        return PickedLogits(logits, classes)

    def are_affine(self, scores: Tensor, logits: Any, activations: Sequence[Tensor]) -> bool:
        """Whether the scores, each of one class whatever the activations, are an affine function of the activations."""
        picked = scores if callable(self.target) else logits
        return all(is_affine(picked, maps) for maps in activations)

    def selected(self, logits: Any) -> Tensor | None:
        """The indices (n,) of the images to explain; None for all."""
        if self.when is None:
            return None
        total = self.geometry.batch
        count = total // self.variants
        with torch.no_grad():
            detached = detach_tensors(logits)
            if self.variants == 1:
                return selected_images(self.when, detached, total)
            selected = selected_images(self.when, slice_batch(detached, 0, count, total), count)
            return selected if selected is None else torch.cat([selected + start for start in range(0, total, count)])

    def layout(self, module: nn.Module, maps: Tensor) -> FeatureLayout:
        """The layout of the feature maps that a module returned."""
        return infer_layout(module, maps, self.geometry, self.tokens)

    @property
    def images(self) -> Tensor:
        """The images among the model's inputs."""
        return self.inputs.images

    @property
    def follows_prediction(self) -> bool:
        """Whether logits decide by their values which of them are scored: the highest, or the rivals of a class."""
        return self.target is None or getattr(self.target, "follows_prediction", False)

    @property
    def takes_several_images(self) -> bool:
        """Whether the model takes several inputs of images: siamese networks, two streams."""
        return len(self.inputs.args) + len(self.inputs.kwargs) > 1 and len(self.inputs.all_images) > 1
