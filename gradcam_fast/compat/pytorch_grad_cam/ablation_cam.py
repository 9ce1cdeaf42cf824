"""Ablation-CAM (Desai and Ramaswamy, WACV 2020)."""

from __future__ import annotations

from collections import OrderedDict
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
from .utils.svd_on_activations import get_2d_projection

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["AblationCAM"]

# As a share of the range of a principal component.
_NEARLY_ZERO = 0.01


class AblationCAM(BaseCAM):
    """Channels weighted by the part of the score that is lost when the channel is set to 0.

    Only what lies behind the layer runs for each channel, or nothing where that is pooling and a linear layer. The
    whole model runs for each where that cannot be replayed, for feature pyramids, and with ``eigen_smooth``.

    Args:
        model, target_layers, reshape_transform: as in :class:`BaseCAM`.
        ablation_layer: not needed: a channel is set to 0, whatever the layer returns.
        ratio_channels_to_ablate: where the whole model runs for each channel, only this share of the channels that lie
            most, and least, in the foreground is ablated. Elsewhere all are.
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
        weights = np.zeros(activations.shape[:2], np.float32)
        for place, (image, target) in enumerate(zip(input_tensor.split(1), targets, strict=True)):
            score = float(target(self.model(image)[0]))
            channels = _channels_to_ablate(activations[place], self.ratio_channels_to_ablate)
            ablated = [
                float(target(output))
                for some in torch.from_numpy(channels).split(self.batch_size)
                for output in self._outputs_without(image, target_layer, some)
            ]
            weights[place, channels] = (score - np.asarray(ablated)) / score
        return weights

    def _outputs_without(self, image: Tensor, layer: nn.Module, channels: Tensor) -> Any:
        """The model's outputs for copies of an image, each without one channel of what the layer returns."""

        def ablate(module: nn.Module, args: Any, output: Any) -> Any:
            first = 0

            def without(level: Tensor) -> Tensor:
                nonlocal first
                changed = level.clone()  # the model may read the same memory elsewhere
                # Tokens have their channels last.
                by_channel = changed.movedim(-1, 1) if changed.dim() == 3 else changed
                for copy, channel in enumerate(channels.tolist()):
                    if first <= channel < first + by_channel.shape[1]:
                        by_channel[copy, channel - first] = 0
                first += by_channel.shape[1]
                return changed

            if isinstance(output, Mapping):
                return OrderedDict((name, without(level)) for name, level in output.items())
            return tuple(map(without, output)) if isinstance(output, (tuple, list)) else without(output)

        hook = layer.register_forward_hook(ablate)
        try:
            return self.model(image.expand(len(channels), *image.shape[1:]))
        finally:
            hook.remove()


def _channels_to_ablate(maps: NDArray[Any], ratio: float) -> NDArray[np.int64]:
    """The channels of maps (C,h,w) that are ablated: all, or with a ratio below 1 those that tell most.

    As in pytorch-grad-cam these are a share ``ratio`` of the channels that lie most in the foreground, and as many that
    lie least in it. The foreground is where the first principal component is not nearly zero.
    """
    count = len(maps)
    if ratio >= 1:
        return np.arange(count)
    component = np.abs(get_2d_projection(maps[None])[0])
    foreground = component - component.min() > _NEARLY_ZERO * np.ptp(component)
    heat = np.abs(maps) - np.abs(maps).min((1, 2), keepdims=True)
    total = heat.sum((1, 2))
    inside = np.divide((heat * foreground).sum((1, 2)), total, out=np.zeros_like(total), where=total > 0)
    order, chosen = np.argsort(inside), int(count * ratio)
    return np.union1d(order[:chosen], order[count - chosen :])
