"""Localisation: whether a heatmap lies on the object that is known to be there, as boxes or masks say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .perturbation import ranks

if TYPE_CHECKING:
    from torch import Tensor

    Objects = Tensor | Sequence[Tensor]

__all__ = ["iou_at", "mass_accuracy", "pointing_game", "rank_accuracy"]


def pointing_game(heatmaps: Tensor, objects: Objects, *, tolerance: float = 15) -> Tensor:
    """Whether the hottest pixel lies on the object, or near it: 1 or 0.

    Zhang et al. 2016, "Top-down neural attention by excitation backprop", section 4.1: a hit if the maximum is at most
    ``tolerance`` pixels from the object. The mean over images is the accuracy; higher is better. Of several maxima the
    share that hits counts, so that a flat map scores the object's share of the image. No prediction is needed.

    Args:
        heatmaps: (B,H,W), or (B,K,H,W) for K objects of each image.
        objects: masks, bool, of the heatmaps' shape; or boxes x1, y1, x2, y2 in pixels of the heatmap: (B,4), (B,K,4),
            or a list with (n,4) boxes for each image, any of which counts.
        tolerance: in pixels.

    Returns:
        (B,) or (B,K) float32, in [0,1]; NaN for a heatmap with NaN or Inf, and without an object.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> heatmap = torch.zeros(1, 40, 40)
        >>> heatmap[0, 5, 5] = 1
        >>> metrics.pointing_game(heatmap, torch.tensor([[10.0, 0, 20, 20]])), metrics.pointing_game(
        ...     heatmap, torch.tensor([[10.0, 0, 20, 20]]), tolerance=3)
        (tensor([1.]), tensor([0.]))
    """
    maps, masks, shape = _maps_and_masks(heatmaps, objects)
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance} is negative; give pixels from 0")
    is_hottest = maps == maps.flatten(1).amax(1)[:, None, None]
    hits = (is_hottest & _within(masks, tolerance)).flatten(1).sum(1) / is_hottest.flatten(1).sum(1)
    return _results(hits, maps, masks, shape)


def mass_accuracy(heatmaps: Tensor, objects: Objects) -> Tensor:
    """The share of the heatmap's mass that lies on the object: in [0,1], higher is better.

    Arras, Osman and Samek 2022, "CLEVR-XAI", equation 6 ("relevance mass accuracy"): the sum over the object divided by
    the sum over the image. Negative values count 0. Arguments as for :func:`pointing_game`; no prediction is needed.

    Returns:
        (B,) or (B,K); NaN for a heatmap without positive values, with NaN or Inf, and without an object.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> metrics.mass_accuracy(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        tensor([0.7500])
    """
    maps, masks, shape = _maps_and_masks(heatmaps, objects)
    heat = maps.clamp(min=0)
    return _results((heat * masks).flatten(1).sum(1) / heat.flatten(1).sum(1), maps, masks, shape)


def rank_accuracy(heatmaps: Tensor, objects: Objects, *, seed: int = 0) -> Tensor:
    """The share of the n hottest pixels that lie on the object, n the object's size: in [0,1], higher is better.

    Arras, Osman and Samek 2022, "CLEVR-XAI", equation 7 ("relevance rank accuracy"). Pixels of equal heat are taken in
    an order drawn from ``seed``. Arguments as for :func:`pointing_game`; no prediction is needed.

    Returns:
        (B,) or (B,K); NaN for a heatmap with NaN or Inf, and without an object.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> metrics.rank_accuracy(torch.tensor([[[3.0, 1.0, 2.0]]]), torch.tensor([[[True, True, False]]]))
        tensor([0.5000])
    """
    maps, masks, shape = _maps_and_masks(heatmaps, objects)
    on_object = masks.flatten(1)
    sizes = on_object.sum(1, keepdim=True)
    hottest = ranks(maps, seed) < sizes
    return _results((hottest & on_object).sum(1) / sizes[:, 0], maps, masks, shape)


def iou_at(heatmaps: Tensor, objects: Objects, threshold: float = 0.5) -> Tensor:
    """Intersection over union of the object and the pixels at least as hot as a threshold: in [0,1], higher is better.

    Args:
        heatmaps, objects: as for :func:`pointing_game`.
        threshold: on the heatmap's own scale.

    Returns:
        (B,) or (B,K); NaN for a heatmap with NaN or Inf, and without an object.

    Example:
        >>> import torch
        >>> from gradcam_fast import metrics
        >>> metrics.iou_at(torch.tensor([[[1.0, 0.6, 0.0]]]), torch.tensor([[[True, False, False]]]))
        tensor([0.5000])
    """
    maps, masks, shape = _maps_and_masks(heatmaps, objects)
    hot = maps >= threshold
    common, either = (hot & masks).flatten(1).sum(1), (hot | masks).flatten(1).sum(1)
    return _results(common / either, maps, masks, shape)


def _maps_and_masks(heatmaps: Tensor, objects: Objects) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The maps and the objects' masks as (N,H,W), and the shape (B,) or (B,K) of results."""
    if not isinstance(heatmaps, torch.Tensor) or not heatmaps.is_floating_point():
        raise TypeError(f"heatmaps is a {type(heatmaps).__name__}; give a floating tensor (B,H,W) or (B,K,H,W)")
    if heatmaps.dim() not in (3, 4):
        raise ValueError(f"heatmaps has shape {tuple(heatmaps.shape)}; expected (B,H,W) or (B,K,H,W)")
    shape, sides = tuple(heatmaps.shape[:-2]), tuple(heatmaps.shape[-2:])
    if isinstance(objects, torch.Tensor) and objects.dtype == torch.bool:
        if objects.shape != heatmaps.shape:
            raise ValueError(f"objects has shape {tuple(objects.shape)}; masks have the heatmaps' {(*shape, *sides)}")
        masks = objects
    elif isinstance(objects, torch.Tensor):
        if tuple(objects.shape) != (*shape, 4):
            raise ValueError(
                f"objects has shape {tuple(objects.shape)} and dtype {objects.dtype}; expected boxes {(*shape, 4)} or "
                f"bool masks {(*shape, *sides)}"
            )
        masks = _in_boxes(objects.unsqueeze(-2), sides)
    else:
        if len(objects) != len(heatmaps) or len(shape) != 1:
            raise ValueError(
                f"objects lists boxes of {len(objects)} images for heatmaps {tuple(heatmaps.shape)}; give boxes (n,4) "
                "for each image, and heatmaps (B,H,W)"
            )
        masks = torch.stack([_in_boxes(torch.as_tensor(boxes).reshape(-1, 4), sides) for boxes in objects])
    return heatmaps.reshape(-1, *sides), masks.to(heatmaps.device).reshape(-1, *sides), shape


def _in_boxes(boxes: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The pixels (...,H,W) whose centres lie in any of the boxes (...,n,4)."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=boxes.device) + 0.5 for side in sides)
    left, top, right, bottom = boxes.float()[..., None].unbind(-2)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows[..., :, None] & in_columns[..., None, :]).any(-3)


def _within(masks: Tensor, distance: float) -> Tensor:
    """The pixels at most ``distance`` pixels from a pixel of the mask."""
    import cv2
    import numpy

    away = [
        cv2.distanceTransform(numpy.uint8(~mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for mask in masks.cpu().numpy()
    ]
    # Without any pixel in the mask, OpenCV's distances are huge but finite.
    return (torch.from_numpy(numpy.stack(away)) <= distance).to(masks.device)


def _results(values: Tensor, maps: Tensor, masks: Tensor, shape: tuple[int, ...]) -> Tensor:
    usable = maps.flatten(1).isfinite().all(1) & masks.flatten(1).any(1)
    return values.float().masked_fill(~usable, torch.nan).reshape(shape)
