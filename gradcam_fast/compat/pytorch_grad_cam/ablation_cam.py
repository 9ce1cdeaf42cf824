"""Ablation-CAM (Desai and Ramaswamy, WACV 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from gradcam_fast import Explainer
from gradcam_fast.exceptions import HeadNotReplayable, NotSpatial

from .base_cam import BaseCAM
from .targets_of_batch import scores_of_batch
from .utils.image import scale_cam_image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["AblationCAM"]


class AblationCAM(BaseCAM):
    """Channels weighted by the part of the score that is lost when the channel is set to 0.

    Only what lies behind the layer runs for each channel, or nothing where that is pooling and a linear layer. The
    whole model runs for each where that cannot be replayed, for feature pyramids, and with ``eigen_smooth``.

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        ablation_layer, ratio_channels_to_ablate: not needed: all channels are set to 0, whatever the layer returns.
        batch_size: how many ablated copies run at once.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Any,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        ablation_layer: Any = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
        **choices: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **choices)
        self.ablation_layer = ablation_layer
        self.batch_size = batch_size
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> Any:
        if eigen_smooth:
            return super().compute_cam_per_layer(input_tensor, targets, eigen_smooth)
        try:
            maps = [
                self._map(input_tensor, layer, targets, activations.shape[2:])
                for layer, activations in zip(self.target_layers, self.activations_and_grads.activations, strict=True)
            ]
        except (HeadNotReplayable, NotSpatial):
            return super().compute_cam_per_layer(input_tensor, targets, eigen_smooth)
        size = self.get_target_width_height(input_tensor)
        return [scale_cam_image(np.maximum(of_layer, 0), size)[:, None] for of_layer in maps]

    def _map(self, images: Tensor, layer: nn.Module, targets: Any, grid: Sequence[int]) -> NDArray[np.float32]:
        """The map (B,h,w) of one layer, at its own size and with negative values."""
        explainer = Explainer(
            self.model,
            layer=layer,
            method="ablation",
            size=tuple(grid),
            normalize="none",
            relu=False,
            tokens=self.activations_and_grads.reshape_transform or "auto",
            call=0,
            chunk=self.batch_size,
        )
        explanation = explainer(images, scores_of_batch(targets))
        # gradcam_fast divides by the score's magnitude, pytorch-grad-cam by the score.
        signs = explanation.score.sign().reshape(-1, *[1] * len(grid))
        return (explanation.heatmap * signs).cpu().numpy()

    @torch.no_grad()
    def get_cam_weights(
        self, input_tensor: Tensor, target_layer: nn.Module, targets: Any, activations: Any, grads: Any
    ) -> NDArray[Any]:
        """The part (B,C) of the score that is lost, by a run of the whole model for each channel."""
        weights = []
        for image, target in zip(input_tensor.split(1), targets, strict=True):
            score = float(target(self.model(image)[0]))
            ablated = [
                float(target(output))
                for channels in torch.arange(activations.shape[1]).split(self.batch_size)
                for output in self._outputs_without(image, target_layer, channels)
            ]
            weights.append((score - np.asarray(ablated)) / score)
        return np.asarray(weights, dtype=np.float32)

    def _outputs_without(self, image: Tensor, layer: nn.Module, channels: Tensor) -> Any:
        """The model's outputs for copies of an image, each without one channel of what the layer returns."""

        def ablate(module: nn.Module, args: Any, output: Any) -> Any:
            levels = list(output.values()) if isinstance(output, Mapping) else [output]
            first = 0
            for level in levels:
                # Tokens have their channels last.
                by_channel = level.movedim(-1, 1) if level.dim() == 3 else level
                for copy, channel in enumerate(channels.tolist()):
                    if first <= channel < first + by_channel.shape[1]:
                        by_channel[copy, channel - first] = 0
                first += by_channel.shape[1]
            return output

        hook = layer.register_forward_hook(ablate)
        try:
            return self.model(image.expand(len(channels), *image.shape[1:]))
        finally:
            hook.remove()
