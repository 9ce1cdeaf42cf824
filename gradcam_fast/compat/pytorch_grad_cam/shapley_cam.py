"""ShapleyCAM (arXiv 2501.06261): Grad-CAM's weights less half of a Hessian-vector product."""

from __future__ import annotations

from typing import Any

import torch

from .base_cam import BaseCAM

__all__ = ["ShapleyCAM"]


class ShapleyCAM(BaseCAM):
    """Channels weighted by the mean of G - H A / 2, with gradients G, activations A and the score's Hessian H.

    Where the model behind the layer is piecewise linear and the score a logit, H is zero: the map is Grad-CAM's.
    """

    def __init__(self, model: Any, target_layers: Any, reshape_transform: Any = None, **choices: Any) -> None:
        super().__init__(model, target_layers, reshape_transform, compute_input_gradient=True, detach=False, **choices)

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, target_category: Any, activations: Any, grads: Any
    ) -> Any:
        products = None
        if grads.requires_grad:
            (products,) = torch.autograd.grad(
                grads, activations, activations.detach(), retain_graph=True, allow_unused=True
            )
        weights = grads.detach() if products is None else grads.detach() - products / 2
        reshape = self.activations_and_grads.reshape_transform
        planes = weights if reshape is None else reshape(weights)
        return planes.flatten(2).mean(2).cpu().numpy()
