"""Eigen-CAM (Muhammad and Yeasin, IJCNN 2020)."""

from __future__ import annotations

from typing import Any

from .base_cam import BaseCAM
from .utils.svd_on_activations import get_2d_projection

__all__ = ["EigenCAM"]


class EigenCAM(BaseCAM):
    """The first principal component of the activations; it depends on no class and needs no gradient."""

    uses_targets = False

    def __init__(self, model: Any, target_layers: Any, reshape_transform: Any = None, **choices: Any) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **choices)

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        return get_2d_projection(activations)
