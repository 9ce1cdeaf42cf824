"""Remove and debias, ROAD (Rong et al., ICML 2022): removed pixels become noisy means of their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..extras import import_extra
from .perturbation_confidence import (
    PERCENTILES,
    AveragerAcrossThresholds,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "NoisyLinearImputer",
    "ROADCombined",
    "ROADLeastRelevantFirst",
    "ROADLeastRelevantFirstAverage",
    "ROADMostRelevantFirst",
    "ROADMostRelevantFirstAverage",
]

# Of the neighbours above, below, left and right; those at the corners have half of it.
_BESIDE = 1 / 6

neighbors_weights = [
    ((down, across), _BESIDE if 0 in (down, across) else _BESIDE / 2)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if (down, across) != (0, 0)
]


class NoisyLinearImputer:
    """Replaces pixels by the weighted mean of their eight neighbours, removed ones among them, plus noise.

    The means of all removed pixels depend on each other: they solve a sparse linear system (needs scipy).

    Args:
        noise: standard deviation of the noise.
        weighting: ((down, across), weight) for each neighbour; the weights add up to 1.
    """

    def __init__(self, noise: float = 0.01, weighting: Sequence[Any] = neighbors_weights) -> None:
        self.noise = noise
        self.weighting = weighting

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """The image (C,H,W) with new values where the mask (H,W) is 0."""
        removed = (mask == 0).numpy()
        if not removed.any():
            return img.clone()
        imputed = torch.from_numpy(self._solve(removed, img.numpy())).to(img.dtype)
        result = img.clone()
        result[:, torch.from_numpy(removed)] = imputed + self.noise * torch.randn_like(imputed)
        return result

    def _solve(self, removed: NDArray[np.bool_], image: NDArray[Any]) -> NDArray[np.float64]:
        """The values (C,n) of the n removed pixels.

        Each is the sum of its neighbours' values times their weights, divided by the weights of those in the image.
        """
        csc_matrix = import_extra("scipy.sparse", "csc_matrix")
        spsolve = import_extra("scipy.sparse.linalg", "spsolve")
        rows, columns = np.nonzero(removed)
        count, (height, width) = len(rows), removed.shape
        unknown = np.full(removed.shape, -1)
        unknown[rows, columns] = np.arange(count)
        total, known = np.zeros(count), np.zeros((count, len(image)))
        entries: list[Any] = []
        for (down, across), weight in self.weighting:
            r, c = rows + down, columns + across
            (inside,) = np.nonzero((r >= 0) & (r < height) & (c >= 0) & (c < width))
            r, c = r[inside], c[inside]
            total[inside] += weight
            neighbour = unknown[r, c]
            is_unknown = neighbour >= 0
            entries.append((inside[is_unknown], neighbour[is_unknown], np.full(int(is_unknown.sum()), -weight)))
            known[inside[~is_unknown]] += weight * image[:, r[~is_unknown], c[~is_unknown]].T
        entries.append((np.arange(count), np.arange(count), total))
        i, j, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        solved = spsolve(csc_matrix((values, (i, j)), shape=(count, count)), known)
        return np.asarray(solved).reshape(count, len(image)).T


class ROADMostRelevantFirst(PerturbationConfidenceMetric):
    """The change of the score without the pixels at and above a percentile of the map."""

    def __init__(self, percentile: Any = 80) -> None:
        super().__init__(RemoveMostRelevantFirst(percentile, NoisyLinearImputer()))


class ROADLeastRelevantFirst(PerturbationConfidenceMetric):
    """The change of the score without the pixels at and above a percentile of the turned map."""

    def __init__(self, percentile: Any = 20) -> None:
        super().__init__(RemoveLeastRelevantFirst(percentile, NoisyLinearImputer()))


class ROADMostRelevantFirstAverage(AveragerAcrossThresholds):
    """The mean over several percentiles."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__(ROADMostRelevantFirst, percentiles)


class ROADLeastRelevantFirstAverage(AveragerAcrossThresholds):
    """The mean over several percentiles."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__(ROADLeastRelevantFirst, percentiles)


class ROADCombined:
    """Half of the difference between the two averages: the better the map, the higher."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        self.percentiles = percentiles
        self.morf_averager = ROADMostRelevantFirstAverage(percentiles)
        self.lerf_averager = ROADLeastRelevantFirstAverage(percentiles)

    def __call__(self, input_tensor: Tensor, cams: Any, targets: Any, model: nn.Module) -> NDArray[np.float32]:
        least = self.lerf_averager(input_tensor, cams, targets, model)
        most = self.morf_averager(input_tensor, cams, targets, model)
        return np.asarray((least - most) / 2, dtype=np.float32)
