"""Random weights, a baseline for other methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base_cam import BaseCAM

__all__ = ["RandomCAM"]


class RandomCAM(BaseCAM):
    """Channels weighted by numpy's random numbers between -1 and 1."""

    def get_cam_weights(
        self, input_tensor: Any, target_layer: Any, target_category: Any, activations: Any, grads: Any
    ) -> Any:
        return np.random.uniform(-1, 1, size=grads.shape[:2])
