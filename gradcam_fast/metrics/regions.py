"""Boxes and masks out of heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["boxes", "mask", "region_masks"]


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
    _, _, edges = _components(hot, largest)
    return torch.from_numpy(edges).to(heatmap.device)


def region_masks(heatmap: Tensor, threshold: float = 0.5, *, largest: bool = False) -> Tensor:
    """The hot regions of a heatmap, one mask for each box of :func:`boxes`.

    Args:
        heatmap: (H,W).
        threshold, largest: as for :func:`boxes`.

    Returns:
        (n,H,W) bool, the largest region first.

    Raises:
        TypeError, ValueError: the heatmap is no floating tensor (H,W).
        ImportError: OpenCV cannot be imported.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> metrics.region_masks(torch.tensor([[1.0, 0.0, 0.9, 0.8]]))
        tensor([[[False, False,  True,  True]],
        <BLANKLINE>
                [[ True, False, False, False]]])
    """
    hot = mask(heatmap, threshold)
    if hot.dim() != 2:
        raise ValueError(f"heatmap has shape {tuple(hot.shape)}; give one heatmap (H,W) at a time")
    labels, numbers, _ = _components(hot, largest)
    return torch.from_numpy(labels == numbers[:, None, None]).to(heatmap.device)


def _components(hot: Tensor, largest: bool) -> tuple[Any, Any, Any]:
    """The number of the region (H,W) of each pixel, the numbers (n,) of regions, largest first, and their boxes."""
    import cv2
    import numpy

    count, labels, statistics, _ = cv2.connectedComponentsWithStats(
        hot.cpu().numpy().astype(numpy.uint8), connectivity=8
    )
    areas = statistics[1:count, cv2.CC_STAT_AREA]  # the first one is the cold rest
    numbers = 1 + numpy.argsort(-areas, kind="stable")[: 1 if largest else None]
    left, top, width, height = statistics[numbers, :4].astype(numpy.float32).T
    return labels, numbers, numpy.stack([left, top, left + width, top + height], 1)
