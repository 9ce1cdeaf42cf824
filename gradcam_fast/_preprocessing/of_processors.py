"""Reads image processors of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .sources import Recipe
from .steps import Resize, Window, exactly, longest, shortest, within

if TYPE_CHECKING:
    from .steps import Step

__all__ = ["recipe_of_processor"]

# Below this size ConvNeXt's processor cuts, from it on it squeezes the whole photo.
_WHOLE_PHOTO_FROM = 384
# LeViT's makes the shorter side longer than its setting says, before it cuts.
_LEVIT, _LEVIT_SHARE = "LevitImageProcessor", 256 / 224


def recipe_of_processor(processor: Any) -> Recipe:
    """Read the settings of an image processor, and of its class where that has rules of its own.

    Raises:
        ValueError: a size of an unknown kind.
    """
    steps: list[Step] = []
    on_tensors = getattr(processor, "backend", "torchvision") == "torchvision"
    crop = _sizes(getattr(processor, "crop_size", None))
    cuts = bool(getattr(processor, "do_center_crop", None)) and crop is not None
    if getattr(processor, "do_resize", False):
        size = _sizes(processor.size)
        share = getattr(processor, "crop_pct", None)
        side = size.get("shortest_edge") or size.get("height")
        sides: Callable[[int, int], tuple[int, int]]
        if share and side and side >= _WHOLE_PHOTO_FROM and not cuts:
            sides = exactly(side, side)
        elif share and side:
            sides = shortest(int(side / share))
            crop, cuts = crop if cuts else {"height": side, "width": side}, True
        else:
            sides = _rule(processor, size)
        steps.append(Resize(sides, _interpolation(processor), on_tensors=on_tensors))
    if cuts and crop:
        steps.append(Window(_square(crop), rounding="down"))
    padded = _sizes(getattr(processor, "pad_size", None))
    if getattr(processor, "do_pad", False) and padded:
        steps.append(Window(_square(padded), place="corner", fill=None))
    # (x * factor - offset - mean) / std = (x / 255 - m) / s
    factor = float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0
    offset = 1.0 if getattr(processor, "do_rescale", False) and getattr(processor, "rescale_offset", False) else 0.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if getattr(processor, "do_normalize", False):
        mean, std = (_triple(processor, name) for name in ("image_mean", "image_std"))
        if getattr(processor, "include_top", False):  # EfficientNet's divides by std twice
            std = tuple(value * value for value in std)
    unit = 255 * factor
    return Recipe(
        tuple(steps),
        tuple((value + offset) / unit for value in mean),
        tuple(value / unit for value in std),
        reverse_channels=bool(getattr(processor, "do_flip_channel_order", False)),
        title=type(processor).__name__,
        original=lambda photo: processor(images=photo, return_tensors="pt")["pixel_values"][0],
    )


def _rule(processor: Any, size: dict[str, int]) -> Callable[[int, int], tuple[int, int]]:
    if "shortest_edge" in size:
        limit = size.get("longest_edge")
        enlarged = type(processor).__name__.startswith(_LEVIT)
        side = int(_LEVIT_SHARE * size["shortest_edge"]) if enlarged else size["shortest_edge"]
        return shortest(side, limit, "twice" if limit else "once")
    if "longest_edge" in size:
        return longest(size["longest_edge"])
    if "max_height" in size and "max_width" in size:
        return within(size["max_height"], size["max_width"], rounding="down")
    if "height" in size and "width" in size:
        return exactly(size["height"], size["width"])
    raise ValueError(
        f"{type(processor).__name__} resizes to {size}, which is unknown; give Preprocess(size, mean=..., std=...)"
    )


def _sizes(size: Any) -> dict[str, int]:
    """A size of transformers, a dict or a SizeDict, without what is not set."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    names = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
    values = {name: size.get(name) if hasattr(size, "get") else getattr(size, name, None) for name in names}
    return {name: int(value) for name, value in values.items() if value}


def _square(size: dict[str, int]) -> tuple[int, int]:
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]


def _triple(processor: Any, name: str) -> tuple[float, ...]:
    values = getattr(processor, name, None)
    if values is None:
        raise ValueError(
            f"{type(processor).__name__} normalises each photo by its own numbers ({name} is None), which cannot be "
            "followed; give Preprocess(size, mean=..., std=...)"
        )
    return (float(values),) * 3 if isinstance(values, (int, float)) else tuple(map(float, values))


def _interpolation(processor: Any) -> str:
    from PIL.Image import Resampling

    resample = getattr(processor, "resample", None)
    value = getattr(resample, "value", resample)
    if isinstance(value, str):
        return value
    return "bilinear" if value is None else Resampling(value).name.lower()
