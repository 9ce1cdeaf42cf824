"""``smooth="augment"``: the mean of the heatmaps of an image, its mirror image, and both darker and brighter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .._capture.containers import slice_batch
from ..explanation import REASONS, Explanation
from ..ops.heatmaps import mean_heatmap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from .._capture.request import Request

__all__ = ["explain_augmented"]

# (mirrored, factor) of each copy; the first is the image itself. They are those of pytorch-grad-cam's aug_smooth.
COPIES = ((False, 1.0), (False, 0.9), (False, 1.1), (True, 1.0), (True, 0.9), (True, 1.1))


def explain_augmented(
    explain: Callable[[Request], Explanation], request: Request, *, images_at_once: int, normalize: str
) -> Explanation:
    """The mean of the heatmaps of six copies of each image, mirrored back and normalised again.

    All copies are explained for the classes of the images themselves, of which logits, target and scores are.

    Args:
        explain: explains a request.
        request: about the images themselves.
        images_at_once: so many images hold the copies together that are explained at once, if several are.
        normalize: as in :func:`gradcam_fast.explain`.

    Raises:
        ValueError: series, volumes, or images that the model transposes.
    """
    geometry = request.geometry
    if len(geometry.size) != 2 or geometry.transposed:
        raise ValueError(
            f"smooth='augment' mirrors images (B,C,H,W) left to right, but the model takes {geometry.axes} of shape "
            f"{tuple(request.images.shape)}; choose smooth='noise', or smooth=None"
        )
    at_once = max(1, images_at_once // max(1, geometry.batch))
    maps, highs = [], []
    first = None
    for start in range(0, len(COPIES), at_once):
        copies = COPIES[start : start + at_once]
        explanation = explain(_of_copies(request, copies))
        if first is None:
            first = _of_first_copy(explanation, geometry.batch, len(copies))
            request = _as_first(request, first)
        by_copy = len(copies), geometry.batch
        heatmaps = explanation.heatmap.unflatten(0, by_copy).unbind(0)
        for heatmap, (mirrored, _) in zip(heatmaps, copies, strict=True):
            maps.append(heatmap.flip(-1) if mirrored else heatmap)
        highs.extend(explanation.raw_max.unflatten(0, by_copy).unbind(0))
    assert first is not None
    return _mean(first, torch.stack(maps), torch.stack(highs), normalize)


def _as_first(request: Request, first: Explanation) -> Request:
    """The request for the other copies: about the classes, and the images, that the first copy was explained for."""
    if first.target is not None:
        request = replace(request, target=first.target, topk=None)
    if request.when is not None:
        assert first.reason_codes is not None
        chosen = first.reason_codes.flatten(1)[:, 0] if first.reason_codes.dim() > 1 else first.reason_codes
        request = replace(request, when=lambda logits: chosen != REASONS.index("not chosen"))
    return request


def _of_copies(request: Request, copies: Sequence[tuple[bool, float]]) -> Request:
    """The request about these copies of the images, one copy after another."""
    inputs, batch = request.inputs, request.geometry.batch
    changed = [
        (inputs.images.flip(-1) if mirrored else inputs.images) * (1 if factor == 1 else factor)
        for mirrored, factor in copies
    ]

    def repeated(tensor: Tensor) -> Tensor:
        return torch.cat([tensor] * len(copies)) if tensor.dim() and len(tensor) == batch else tensor

    return replace(
        request,
        inputs=inputs.map(repeated).replace({inputs.images_at: torch.cat(changed)}),
        geometry=replace(request.geometry, batch=batch * len(copies)),
        variants=request.variants * len(copies),
    )


def _of_first_copy(explanation: Explanation, batch: int, copies: int) -> Explanation:
    def first(value: Any) -> Any:
        return slice_batch(value, 0, batch, batch * copies)

    return replace(
        explanation,
        logits=first(explanation.logits),
        target=first(explanation.target),
        score=first(explanation.score),
        reason_codes=first(explanation.reason_codes),
    )


def _mean(first: Explanation, maps: Tensor, highs: Tensor, normalize: str) -> Explanation:
    heatmap, low, high = mean_heatmap(list(maps), list(highs), normalize)
    valid = high > low
    if normalize == "max":
        valid &= high > 0
    not_finite, flat = map(REASONS.index, ("not finite", "flat"))
    assert first.reason_codes is not None
    codes = torch.where(first.reason_codes > 0, first.reason_codes, torch.where(high.isnan(), not_finite, flat))
    codes = codes.masked_fill(valid, 0).to(torch.uint8)
    return replace(first, heatmap=heatmap, raw_min=low, raw_max=high, valid=valid, reason_codes=codes)
