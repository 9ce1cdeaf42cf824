"""The change of the scores when images are perturbed by their maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "AveragerAcrossThresholds",
    "PerturbationConfidenceMetric",
    "RemoveLeastRelevantFirst",
    "RemoveMostRelevantFirst",
]

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class PerturbationConfidenceMetric:
    """Scores of perturbed images, less those of the images.

    Args:
        perturbation: from an image (C,H,W) and its map (H,W), both on the CPU, to the perturbed image.
    """

    def __init__(self, perturbation: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.perturbation = perturbation

    @torch.no_grad()
    def __call__(
        self,
        input_tensor: Tensor,
        cams: NDArray[np.float32],
        targets: Sequence[Callable[[Any], Tensor]],
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """Differences (B,), or with ``return_diff=False`` the scores of the perturbed images.

        Args:
            input_tensor, targets, model: as those of which the maps are.
            cams: maps (B,H,W) in [0,1].
            return_visualization: whether to return the perturbed images, too.
        """
        perturbed = torch.stack(
            [
                self.perturbation(image.cpu(), torch.from_numpy(np.asarray(of_image)))
                for image, of_image in zip(input_tensor, cams, strict=True)
            ]
        ).to(input_tensor.device)
        result = _scores(model(perturbed), targets)
        if return_diff:
            result = result - _scores(model(input_tensor), targets)
        return (result, perturbed) if return_visualization else result


def _scores(outputs: Any, targets: Sequence[Callable[[Any], Tensor]]) -> NDArray[np.float32]:
    scores = [target(output).cpu().numpy() for target, output in zip(targets, outputs, strict=False)]
    return np.asarray(scores, dtype=np.float32)


class RemoveMostRelevantFirst:
    """Removes the pixels of an image at and above a percentile of its map.

    Args:
        percentile: of the map's values, or "auto" for Otsu's threshold.
        imputer: from the image and a mask (H,W), 0 where pixels are removed, to the image without them.
    """

    def __init__(self, percentile: float | Literal["auto"], imputer: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.percentile = percentile
        self.imputer = imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        values = mask.cpu().numpy()
        if self.percentile == "auto":
            _, kept = cv2.threshold(np.uint8(values * 255), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        else:
            kept = np.float32(values < np.percentile(values, self.percentile))
        return self.imputer(input_tensor, torch.from_numpy(kept).to(mask.device))


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """Removes those of the turned map, 1 less its values."""

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        return super().__call__(input_tensor, 1 - mask)


class AveragerAcrossThresholds:
    """The mean of a metric over several percentiles.

    Args:
        imputer: from a percentile to the metric.
        percentiles: those.
    """

    def __init__(self, imputer: Callable[[float], Any], percentiles: Sequence[float] = PERCENTILES) -> None:
        self.imputer = imputer
        self.percentiles = percentiles

    def __call__(self, input_tensor: Tensor, cams: Any, targets: Any, model: nn.Module) -> NDArray[np.float32]:
        metrics = map(self.imputer, self.percentiles)
        scores = [metric(input_tensor, cams, targets, model) for metric in metrics]
        return np.mean(np.asarray(scores, dtype=np.float32), axis=0)
