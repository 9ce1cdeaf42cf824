"""HiResCAM (Draelos and Carin, arXiv 2011.08891)."""

from __future__ import annotations

from typing import Any

from .base_cam import BaseCAM, fused
from .utils.svd_on_activations import get_2d_projection

__all__ = ["HiResCAM"]


@fused("hirescam")
class HiResCAM(BaseCAM):
    """The sum over the channels of activation times gradient, position by position."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        products = grads * activations
        return get_2d_projection(products) if eigen_smooth else products.sum(axis=1)
