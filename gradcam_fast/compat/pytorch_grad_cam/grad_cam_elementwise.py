"""Grad-CAM with the product of activation and gradient cut at zero at each position."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base_cam import BaseCAM, fused
from .utils.svd_on_activations import get_2d_projection

__all__ = ["GradCAMElementWise"]


@fused("elementwise")
class GradCAMElementWise(BaseCAM):
    """The sum over the channels of the positive products of activation and gradient."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        products = np.maximum(grads * activations, 0)
        return get_2d_projection(products) if eigen_smooth else products.sum(axis=1)
