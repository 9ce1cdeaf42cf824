"""Grad-CAM++ (Chattopadhay et al., WACV 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base_cam import BaseCAM, fused

__all__ = ["GradCAMPlusPlus"]


@fused("gradcam++")
class GradCAMPlusPlus(BaseCAM):
    """Channels weighted by their positive gradients, each with the alpha of equation 19, without an epsilon."""

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, target_category: Any, activations: Any, grads: Any
    ) -> Any:
        positions = tuple(range(2, activations.ndim))
        denominator = 2 + activations.sum(axis=positions, keepdims=True, dtype=np.float64) * grads
        terms = np.zeros_like(denominator)
        np.divide(grads, denominator, out=terms, where=(grads > 0) & (denominator > 0))
        return terms.sum(axis=positions).astype(activations.dtype)
