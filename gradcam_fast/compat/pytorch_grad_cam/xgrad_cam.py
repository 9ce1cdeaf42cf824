"""XGrad-CAM (Fu et al., BMVC 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base_cam import BaseCAM, fused

__all__ = ["XGradCAM"]


@fused("xgradcam")
class XGradCAM(BaseCAM):
    """Channels weighted by the mean of their gradient, in which each position counts by its activation."""

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, target_category: Any, activations: Any, grads: Any
    ) -> Any:
        positions = tuple(range(2, activations.ndim))
        total = activations.sum(axis=positions, dtype=np.float64)
        products = (grads * activations).sum(axis=positions, dtype=np.float64)
        weights = np.divide(products, total, out=np.zeros_like(total), where=total != 0)
        return weights.astype(activations.dtype)
