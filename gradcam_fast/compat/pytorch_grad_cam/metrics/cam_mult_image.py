"""Confidence in images multiplied by their maps (Chattopadhay et al., WACV 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .perturbation_confidence import PerturbationConfidenceMetric

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence", "multiply_tensor_with_cam"]


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """An image, as the model takes it, times its map."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    """The score of the image times its map, less that of the image."""

    def __init__(self) -> None:
        super().__init__(multiply_tensor_with_cam)


class DropInConfidence(CamMultImageConfidenceChange):
    """How much of the score is lost, or 0."""

    def __call__(self, *args: Any, **choices: Any) -> Any:
        return np.maximum(-super().__call__(*args, **choices), 0)


class IncreaseInConfidence(CamMultImageConfidenceChange):
    """1 where the score grows, else 0."""

    def __call__(self, *args: Any, **choices: Any) -> Any:
        return np.float32(super().__call__(*args, **choices) > 0)
