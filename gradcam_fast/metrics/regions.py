"""Boxes and masks out of heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["boxes", "mask"]


def mask(heatmap: Tensor, threshold: float = 0.5) -> Tensor:
    """Where the heatmap is at least as hot as a threshold.

    Args:
        heatmap: (..., H, W).
        threshold: on the heatmap's own scale; 0.5 of a map in [0,1] is half its maximum.

    Returns:
        bool, of the heatmap's shape; a map of zeros gives no pixel where the threshold is positive.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> metrics.mask(torch.tensor([[0.2, 0.7]]))
        tensor([[False,  True]])
    """
    if not isinstance(heatmap, torch.Tensor) or not heatmap.is_floating_point() or heatmap.dim() < 2:
        raise TypeError("heatmap is no floating tensor (...,H,W); give that of an explanation")
    return heatmap >= threshold


def boxes(heatmap: Tensor, threshold: float = 0.5, *, largest: bool = False) -> Any:
    """The boxes around the hot regions of each heatmap, found by OpenCV's connected components.

    Args:
        heatmap: (H,W), (B,H,W) or (B,K,H,W).
        threshold: as for :func:`mask`.
        largest: whether only the box of each map's largest region is wanted.

    Returns:
        For (H,W) a tensor (n,4) of x1, y1, x2, y2 in pixels, float32, largest region first, x2 and y2 behind the last
        pixel; for (B,H,W) a list of these, for (B,K,H,W) a list of lists. n is 0 where no pixel is hot.

    Raises:
        TypeError: the heatmap is no floating tensor.
        ImportError: OpenCV cannot be imported.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> heatmap = torch.zeros(6, 8)
        >>> heatmap[1:3, 2:6], heatmap[5, 7] = 1, 0.9
        >>> metrics.boxes(heatmap)
        tensor([[2., 1., 6., 3.],
                [7., 5., 8., 6.]])
    """
    hot = mask(heatmap, threshold)
    if hot.dim() > 2:
        return [boxes(maps, threshold, largest=largest) for maps in heatmap]
    import cv2
    import numpy

    count, _, statistics, _ = cv2.connectedComponentsWithStats(hot.cpu().numpy().astype(numpy.uint8), connectivity=8)
    regions = statistics[1:count]  # the first one is the cold rest
    regions = regions[numpy.argsort(-regions[:, cv2.CC_STAT_AREA], kind="stable")][: 1 if largest else None]
    left, top, width, height = (torch.from_numpy(regions[:, column].astype(numpy.float32)) for column in range(4))
    return torch.stack([left, top, left + width, top + height], 1).to(heatmap.device)
