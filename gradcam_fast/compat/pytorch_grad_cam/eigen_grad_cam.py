"""Eigen-CAM of activations times gradients."""

from __future__ import annotations

from typing import Any

from .base_cam import BaseCAM
from .utils.svd_on_activations import get_2d_projection

__all__ = ["EigenGradCAM"]


class EigenGradCAM(BaseCAM):
    """The first principal component of the products of activation and gradient."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        return get_2d_projection(grads * activations, direction=activations.mean(axis=1))
