"""One request about a batch: what is asked of the model, all checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._layout.feature_layout import FeatureLayout, ImageGeometry, infer_layout
from .containers import detach_tensors
from .image_selection import selected_images
from .scores import pick_logits, scores_of

if TYPE_CHECKING:
    from torch import Tensor

    from .._model.inputs import Inputs
    from ..types import Output, Tokens, When

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """The arguments of one call about one batch, all checked."""

    inputs: Inputs
    geometry: ImageGeometry
    target: Any
    topk: int | None
    output: Output | None
    tokens: Tokens
    when: When | None = None

    def scores(self, returned: Any) -> tuple[Any, Tensor, Tensor | None]:
        """From the model's output: its logits, the scores to explain and their classes."""
        takes_whole_output = callable(self.target) and self.output is None
        logits = returned if takes_whole_output else pick_logits(returned, self.output)
        return logits, *scores_of(logits, self.target, self.topk, self.geometry.batch)

    def picked_logits(self, logits: Any, classes: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The logits (B,N) and classes, if each score is the logit of its class; None if that is not certain."""
        may_be_out_of_range = isinstance(self.target, torch.Tensor) and self.target.device.type != "cpu"
        return (logits, classes) if classes is not None and logits.dim() == 2 and not may_be_out_of_range else None

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

    @property
    def takes_several_images(self) -> bool:
        """Whether the model takes several inputs of images: siamese networks, two streams."""
        return len(self.inputs.args) + len(self.inputs.kwargs) > 1 and len(self.inputs.all_images) > 1
