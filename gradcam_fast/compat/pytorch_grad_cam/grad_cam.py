"""Grad-CAM (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

from typing import Any

from .base_cam import BaseCAM, fused

__all__ = ["GradCAM"]


@fused("gradcam")
class GradCAM(BaseCAM):
    """Channels weighted by the mean of their gradient."""

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, target_category: Any, activations: Any, grads: Any
    ) -> Any:
        if grads.ndim not in (4, 5):
            raise ValueError(f"grads has shape {grads.shape}; expected (B,C,h,w) or (B,C,d,h,w)")
        return grads.mean(axis=tuple(range(2, grads.ndim)))
