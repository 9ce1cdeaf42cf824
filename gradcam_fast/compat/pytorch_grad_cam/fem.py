"""Feature Explanation Method (Fuad et al., IPTA 2020)."""

from __future__ import annotations

from typing import Any

from .base_cam import BaseCAM

__all__ = ["FEM"]


class FEM(BaseCAM):
    """Channels weighted by how many of their positions lie k standard deviations above their mean.

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        k: how many standard deviations.
    """

    uses_targets = False

    def __init__(
        self, model: Any, target_layers: Any, reshape_transform: Any = None, k: float = 2, **choices: Any
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **choices)
        self.k = k

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        positions = tuple(range(2, activations.ndim))
        threshold = activations.mean(positions, keepdims=True) + self.k * activations.std(positions, keepdims=True)
        weights = (activations > threshold).mean(positions, keepdims=True)
        return (weights * activations).sum(axis=1)
