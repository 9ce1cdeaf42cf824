"""KPCA-CAM (Karmani et al., arXiv 2410.00267)."""

from __future__ import annotations

from typing import Any

from .base_cam import BaseCAM
from .utils.svd_on_activations import get_2d_projection_kernel

__all__ = ["KPCA_CAM"]


class KPCA_CAM(BaseCAM):
    """The first component of a kernel principal component analysis of the activations; needs scikit-learn.

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        kernel, gamma: of scikit-learn's ``KernelPCA``.
    """

    uses_targets = False

    def __init__(
        self,
        model: Any,
        target_layers: Any,
        reshape_transform: Any = None,
        kernel: str = "sigmoid",
        gamma: float | None = None,
        **choices: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **choices)
        self.kernel = kernel
        self.gamma = gamma

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Any:
        return get_2d_projection_kernel(activations, self.kernel, self.gamma)
