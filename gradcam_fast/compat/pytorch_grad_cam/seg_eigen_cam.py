"""Seg-Eigen-CAM (Chung and Ying, Applied Sciences 2025)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base_cam import BaseCAM
from .utils.svd_on_activations import get_2d_projection_with_sign_correction

__all__ = ["SegEigenCAM"]


class SegEigenCAM(BaseCAM):
    """The first principal component of activations times absolute gradients, its largest magnitude made positive."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        return get_2d_projection_with_sign_correction(np.abs(grads) * activations)
