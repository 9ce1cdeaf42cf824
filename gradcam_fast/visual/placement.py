"""Lays a map where the network looked: over the part of a photo that its input showed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    Box = tuple[float, float, float, float]

__all__ = ["WAY_OUT", "boxes_of", "covers_whole_photo", "place", "whole"]

WAY_OUT = (
    "give box=, the part of the photo that the network saw, which gradcam_fast.Preprocess returns, or box='whole' if "
    "the network saw the whole photo squeezed"
)


@torch.no_grad()
def place(maps: Tensor, size: tuple[int, int], box: Box) -> tuple[Tensor, Tensor]:
    """Resize maps to the pixels of a photo, bilinear with half-pixel centres.

    Args:
        maps: (...,h,w), floating.
        size: (height, width) of the photo.
        box: (left, top, right, bottom), the part of the photo that the maps cover, in pixels; it may reach beyond the
            photo.

    Returns:
        (...,height,width), and booleans (height,width): which pixels have their centre in the box. Pixels outside of it
        have the value of the nearest edge.

    Example:
        >>> import torch
        >>> maps, inside = place(torch.tensor([[0.0, 1.0]]), (1, 8), (2.0, 0.0, 6.0, 1.0))
        >>> maps.tolist(), inside.int().tolist()
        ([[0.0, 0.0, 0.0, 0.25, 0.75, 1.0, 1.0, 1.0]], [[0, 0, 1, 1, 1, 1, 0, 0]])
    """
    left, top, right, bottom = box
    if box == whole(size):
        full = torch.nn.functional.interpolate(maps.reshape(1, -1, *maps.shape[-2:]), size, mode="bilinear")
        return full.reshape(*maps.shape[:-2], *size), torch.ones(size, dtype=torch.bool, device=maps.device)
    rows, in_rows = _along(maps, -2, size[0], top, bottom)
    columns, in_columns = _along(rows, -1, size[1], left, right)
    return columns, in_rows[:, None] & in_columns[None, :]


def _along(maps: Tensor, axis: int, length: int, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Resize along one axis, of which the maps cover the pixels from ``start`` to ``end``."""
    count = maps.shape[axis]
    # On the CPU in float64: a photo may have thousands of pixels. These are short, and copied without waiting.
    centres = torch.arange(length, dtype=torch.float64, device="cpu") + 0.5
    inside = (centres >= start) & (centres < end)
    sources = ((centres - start) * (count / (end - start)) - 0.5).clamp(0, count - 1)
    lower = sources.floor().clamp(max=max(count - 2, 0))
    share = (sources - lower).to(maps.dtype).to(maps.device)
    low = lower.long().to(maps.device)
    high = (low + 1).clamp(max=count - 1)
    if axis == -2:
        share = share[:, None]
    return torch.lerp(maps.index_select(axis, low), maps.index_select(axis, high), share), inside.to(maps.device)


def boxes_of(box: Any, sizes: Sequence[tuple[int, int]]) -> list[Box | None]:
    """The box of each photo.

    Args:
        box: None; "whole"; four numbers for all photos; or four for each, as a tensor, array or list.
        sizes: (height, width) of each photo.

    Raises:
        TypeError, ValueError: something else, another number of boxes, or an empty box.
    """
    if box is None:
        return [None] * len(sizes)
    if isinstance(box, str):
        if box != "whole":
            raise ValueError(f"box={box!r} is unknown; give (left, top, right, bottom) in pixels, or 'whole'")
        return [whole(size) for size in sizes]
    if isinstance(box, (list, tuple)) and any(isinstance(member, str) or member is None for member in box):
        if len(box) != len(sizes):
            raise ValueError(f"box has {len(box)} boxes for {len(sizes)} photos; give one for each")
        return [boxes_of(member, [size])[0] for member, size in zip(box, sizes, strict=True)]
    try:
        rows = torch.as_tensor(
            [list(map(float, member)) for member in box] if _is_nested(box) else box, dtype=torch.float64, device="cpu"
        )
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"box={box!r:.80} is a {type(box).__name__}; give (left, top, right, bottom) in pixels of the photo"
        ) from None
    if rows.dim() == 0:
        raise TypeError(
            f"box={box!r} is a {type(box).__name__}; give (left, top, right, bottom) in pixels of the photo"
        )
    if rows.dim() == 1:
        rows = rows.expand(len(sizes), -1)
    if rows.shape != (len(sizes), 4):
        raise ValueError(
            f"box has shape {tuple(rows.shape)} for {len(sizes)} photos; give (left, top, right, bottom) in pixels of "
            "the photo, or one such row for each photo"
        )
    boxes: list[Box | None] = []
    for left, top, right, bottom in rows.tolist():
        if not (right > left and bottom > top):
            raise ValueError(
                f"box=({left:g}, {top:g}, {right:g}, {bottom:g}) is empty; give left, top, right, bottom, in this order"
            )
        boxes.append((left, top, right, bottom))
    return boxes


def _is_nested(box: Any) -> bool:
    return isinstance(box, (list, tuple)) and bool(box) and not isinstance(box[0], (int, float))


def whole(size: tuple[int, int]) -> Box:
    """The box of a whole photo of (height, width)."""
    return 0.0, 0.0, float(size[1]), float(size[0])


def covers_whole_photo(maps: Sequence[int], photo: Sequence[int]) -> bool:
    """Whether a map (h,w) has the proportions of a photo (H,W), so that it may cover all of it.

    A network divides both sides by the same stride and rounds up or down, so that either side may be off by one.
    """
    (h, w), (height, width) = maps, photo
    smallest = max(height / (h + 1), width / (w + 1))
    largest = min(height / (h - 1) if h > 1 else float("inf"), width / (w - 1) if w > 1 else float("inf"))
    return smallest < largest
