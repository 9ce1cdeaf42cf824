"""Score-CAM (Wang et al., CVPR Workshops 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .base_cam import BaseCAM

__all__ = ["ScoreCAM"]


class ScoreCAM(BaseCAM):
    """Channels weighted by the softmax over the scores of the image masked by each channel.

    Constant channels mask all of the image alike, so that they are scored together, once. The masks are resized with
    aligned corners, as there.

    Attributes:
        batch_size: how many masked images go through the model at once.
    """

    batch_size = 16

    def __init__(self, model: Any, target_layers: Any, reshape_transform: Any = None, **choices: Any) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False, **choices)

    @torch.no_grad()
    def get_cam_weights(
        self, input_tensor: Any, target_layer: nn.Module, targets: Any, activations: Any, grads: Any
    ) -> Any:
        maps = torch.from_numpy(activations).to(input_tensor)
        weights = [
            self._scores(image, target, of_image).softmax(0)
            for image, target, of_image in zip(input_tensor, targets, maps, strict=True)
        ]
        return torch.stack(weights).numpy()

    def _scores(self, image: Any, target: Any, maps: Any) -> Any:
        """The score (C,) of the image (3,H,W) under the mask of each channel of its maps (C,h,w)."""
        constant = (maps == maps[:, :1, :1]).flatten(1).all(1)
        # The first mask is that of all constant channels.
        masked = [maps.new_zeros(1, *maps.shape[1:]), *maps[~constant].split(1)]
        scores = [
            float(target(output))
            for first in range(0, len(masked), self.batch_size)
            for output in self.model(
                image * _masks(torch.cat(masked[first : first + self.batch_size]), image.shape[1:])
            )
        ]
        all_scores = torch.full((len(maps),), scores[0])
        all_scores[~constant.cpu()] = torch.tensor(scores[1:])
        return all_scores


def _masks(maps: Any, size: Any) -> Any:
    """Masks (n,1,H,W) in [0,1] from maps (n,h,w)."""
    resized = F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=True)
    low, high = resized.amin((2, 3), keepdim=True), resized.amax((2, 3), keepdim=True)
    return (resized - low) / (high - low + 1e-8)
