"""LayerCAM (Jiang et al., IEEE TIP 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base_cam import BaseCAM, fused
from .utils.svd_on_activations import get_2d_projection

__all__ = ["LayerCAM"]


@fused("layercam")
class LayerCAM(BaseCAM):
    """The sum over the channels of activation times positive gradient, position by position."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        products = np.maximum(grads, 0) * activations
        return get_2d_projection(products) if eigen_smooth else products.sum(axis=1)
