"""ARCC, one number for a map: simple, coherent with its own masking, and right about what matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .road import ROADCombined

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = ["ARCC", "Coherency", "Complexity", "batch_pearson_coherency"]

# Keeps the harmonic mean finite where one of its terms is 0.
_EPSILON = 1e-8


def batch_pearson_coherency(A: NDArray[Any], B: NDArray[Any]) -> NDArray[Any]:
    """Pearson's correlation (B,) of the maps of two batches; 0 where one is flat."""
    a, b = (maps.reshape(len(maps), -1) - maps.reshape(len(maps), -1).mean(axis=1, keepdims=True) for maps in (A, B))
    covariance, *variances = ((x * y).sum(axis=1) / (x.shape[1] - 1) for x, y in ((a, b), (a, a), (b, b)))
    return covariance / (np.sqrt(variances[0]) * np.sqrt(variances[1]) + _EPSILON)


class Complexity:
    """The mean absolute value (B,) of maps, in [0,1] (Poppi et al., CVPR Workshops 2021)."""

    def __call__(self, grayscale_cams: NDArray[Any]) -> NDArray[Any]:
        return np.abs(grayscale_cams).reshape(len(grayscale_cams), -1).mean(axis=1)


class Coherency:
    """The correlation (B,), moved to [0,1], of maps with those of the images times them (Poppi et al.)."""

    def __call__(
        self,
        input_tensor: Tensor,
        grayscale_cams: NDArray[Any],
        targets: Sequence[Any],
        model: nn.Module,
        base_method: Callable[..., NDArray[Any]],
    ) -> NDArray[Any]:
        masked = input_tensor * torch.from_numpy(grayscale_cams)[:, None].to(input_tensor.device)
        return (batch_pearson_coherency(base_method(input_tensor=masked, targets=targets), grayscale_cams) + 1) / 2


class ARCC:
    """The harmonic mean (B,) of coherency, 1 less the complexity, and ROAD (arXiv 2605.14641).

    Args:
        base_method: the object that made the maps.
        road_percentiles: those of ROAD, whose result counts twice and is cut to [0,1].
    """

    def __init__(self, base_method: Callable[..., NDArray[Any]], road_percentiles: Sequence[float] = (20, 40, 60, 80)):
        self.complexity = Complexity()
        self.coherency = Coherency()
        self.road = ROADCombined(road_percentiles)
        self.base_method = base_method

    def __call__(
        self, input_tensor: Tensor, grayscale_cams: NDArray[Any], targets: Sequence[Any], model: nn.Module
    ) -> NDArray[Any]:
        terms = [
            self.coherency(input_tensor, grayscale_cams, targets, model, self.base_method),
            1 - self.complexity(grayscale_cams),
            (2 * self.road(input_tensor, grayscale_cams, targets, model)).clip(0, 1),
        ]
        return len(terms) / np.sum([1 / (term + _EPSILON) for term in terms], axis=0)
