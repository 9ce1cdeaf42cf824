"""FullGrad (Srinivas and Fleuret, NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .base_cam import BaseCAM
from .utils.find_layers import find_layer_types_recursive
from .utils.image import scale_accross_batch_and_channels, scale_cam_image
from .utils.svd_on_activations import get_2d_projection

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FullGrad"]

# With eigen_smooth the maps of all channels together are shrunk by this first.
_SHRINK = 8


class FullGrad(BaseCAM):
    """The input times its gradient, and of all convolutions and batch-norms with a bias that times its gradient.

    The map is the sum of all of them, each channel scaled to [0,1]. A layer that runs several times counts with its
    first gradient.

    Args:
        model, reshape_transform: as in :class:`BaseCAM`.
        target_layers: not used; a message says so where any are given.
    """

    def __init__(
        self, model: nn.Module, target_layers: Iterable[nn.Module] = (), reshape_transform: Any = None, **choices: Any
    ) -> None:
        if list(target_layers):
            print("FullGrad takes all layers with a bias; target_layers is not used")
        biased = [layer for layer in _biased_types(model) if layer.bias is not None]
        super().__init__(model, biased, reshape_transform, compute_input_gradient=True, **choices)
        self.bias_data = [self.get_bias_data(layer).cpu().numpy() for layer in biased]

    def get_bias_data(self, layer: Any) -> Tensor:
        """The bias (C,) of a layer; of a batch-norm that with which its output is input times a factor plus bias."""
        if isinstance(layer, nn.BatchNorm2d):
            if layer.running_mean is None or layer.running_var is None:
                raise ValueError("a BatchNorm2d without running statistics has no fixed bias; FullGrad needs one")
            deviation = (layer.running_var + layer.eps).sqrt()
            return (layer.bias - layer.running_mean * layer.weight / deviation).detach()
        return layer.bias.detach()

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> Any:
        """All maps added up, (B,1,H,W)."""
        size = self.get_target_width_height(input_tensor)
        if input_tensor.grad is None:
            raise ValueError("the score does not depend on the input; FullGrad needs the gradient there")
        of_input = (input_tensor.grad * input_tensor.detach()).abs().cpu().numpy()
        maps = [scale_accross_batch_and_channels(of_input, size)]
        gradients = self.activations_and_grads.gradients_of_layers
        for layer, bias in zip(self.target_layers, self.bias_data, strict=True):
            if layer in gradients:
                of_bias = np.abs(bias[:, None, None] * gradients[layer].numpy())
                maps.append(scale_accross_batch_and_channels(of_bias, size).sum(axis=1, keepdims=True))
        joined = np.concatenate(maps, axis=1)
        if not eigen_smooth:
            return joined.sum(axis=1, keepdims=True)
        small = scale_accross_batch_and_channels(joined, [side // _SHRINK for side in size])
        return scale_accross_batch_and_channels(get_2d_projection(small)[:, None], size)

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> Any:
        return scale_cam_image(np.sum(cam_per_target_layer, axis=1))


def _biased_types(model: nn.Module) -> list[Any]:
    return find_layer_types_recursive(model, [nn.Conv2d, nn.BatchNorm2d])
