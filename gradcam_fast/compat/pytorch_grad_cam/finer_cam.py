"""Finer-CAM (Zhang et al., CVPR 2025): what sets a class apart from those that the model finds most similar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .grad_cam import GradCAM
from .utils.model_targets import FinerWeightedTarget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from .base_cam import BaseCAM

__all__ = ["FinerCAM"]

DEFAULT_COMPARISON_CATEGORIES = (1, 2, 3)


class FinerCAM:
    """Maps of another method for the difference between a class and similar ones.

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        base_method: the class that makes the maps.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAM,
        **choices: Any,
    ) -> None:
        self.base_cam = base_method(model, target_layers, reshape_transform, **choices)
        self.compute_input_gradient = self.base_cam.compute_input_gradient
        self.uses_gradients = self.base_cam.uses_gradients

    def __call__(self, *args: Any, **choices: Any) -> NDArray[np.float32]:
        return self.forward(*args, **choices)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[Any] | None = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
    ) -> NDArray[np.float32]:
        """Maps (B,H,W) as :class:`BaseCAM` returns them.

        Args:
            input_tensor, targets, eigen_smooth: as in :class:`BaseCAM`; with targets the other arguments do not count.
            alpha: how much the similar classes count.
            comparison_categories: places in the order of similarity, in which 0 is the class itself; None = 1, 2 and 3.
            target_idx: the class; None = each image's highest logit.
        """
        choose = partial(
            _similar_classes, alpha=alpha, comparison_categories=comparison_categories, target_idx=target_idx
        )
        return self.base_cam.forward(input_tensor, choose if targets is None else targets, eigen_smooth)

    def __enter__(self) -> FinerCAM:
        return self

    def __exit__(self, *_: object) -> None:
        self.base_cam.activations_and_grads.release()

    def __del__(self) -> None:
        if "base_cam" in vars(self):
            self.base_cam.activations_and_grads.release()


def _similar_classes(
    outputs: Tensor, *, alpha: float, comparison_categories: Sequence[int] | None, target_idx: int | None
) -> list[FinerWeightedTarget]:
    """For each image a target that compares its class with those of the nearest logits."""
    logits = outputs.detach()
    classes = logits.shape[-1]
    places = [place for place in comparison_categories or DEFAULT_COMPARISON_CATEGORIES if place < classes]
    own = logits.amax(-1) if target_idx is None else logits[:, target_idx]
    order = (logits - own[:, None]).abs().argsort(dim=-1, stable=True)
    return [FinerWeightedTarget(nearest[0], [nearest[place] for place in places], alpha) for nearest in order.tolist()]
