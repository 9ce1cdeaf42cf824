"""Reads transforms of torchvision (v1, v2, and the presets of its weights) and of timm, one reader for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .sources import Recipe
from .steps import Gray, Margins, Resize, Window, cover, exactly, longest, shortest, within

if TYPE_CHECKING:
    from .steps import Fill, Step

__all__ = ["recipe_of_timm", "recipe_of_transform"]


class _Reader:
    """What the transforms read so far make of a photo: steps, then ``value * scale + shift`` of its 0..255 levels."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.scale = torch.ones(1, dtype=torch.float64, device="cpu")
        self.shift = torch.zeros(1, dtype=torch.float64, device="cpu")
        self.is_tensor = self.is_scaled = self.is_normalised = False

    def read(self, transform: Any) -> None:
        """Add one transform.

        Raises:
            ValueError: it is unknown, or one of its settings is.
        """
        if isinstance(transform, (list, tuple, torch.nn.Sequential)):
            for member in transform:
                self.read(member)
            return
        name = type(transform).__name__
        known = type(transform).__module__.startswith(("torchvision.transforms", "timm.data"))
        if not known or name not in _READERS:
            why = "is random, and networks are explained on photos as they are" if "Random" in name else "is unknown"
            raise ValueError(
                f"the transform {_describe(transform)} {why}; give the transforms of evaluation without it, or the "
                "numbers: Preprocess(size, mean=..., std=..., fit=..., crop=...)"
            )
        _READERS[name](self, transform)

    def recipe(self, title: str, original: Callable[[Any], Any]) -> Recipe:
        """All that was read."""
        # (x / 255 - mean) / std = x * scale + shift
        std = 1 / (255 * self.scale)
        mean = -self.shift * std
        channels = 1 if any(isinstance(step, Gray) and step.channels == 1 for step in self.steps) else 3
        # Without the last digits, which are rounding, and without the sign of -0.
        means, stds = (
            tuple(round(float(value), 7) + 0.0 for value in values.expand(channels)) for values in (mean, std)
        )
        return Recipe(tuple(self.steps), means, stds, title=title, original=original)

    def fill(self, transform: Any) -> Fill:
        """The colour of padding, in levels; None for 0 behind the normalisation."""
        if getattr(transform, "padding_mode", "constant") != "constant":
            raise ValueError(
                f"the transform {_describe(transform)} pads with the photo's own pixels, which cannot be followed; pad "
                "with a colour"
            )
        fill = getattr(transform, "fill", 0)
        if isinstance(fill, Mapping):  # v2 keeps one for each kind of input
            fill = next(iter(fill.values()), 0)
        values = [float(value) for value in (fill if isinstance(fill, Iterable) else (fill or 0,))]
        if self.is_normalised:
            if any(values):
                raise ValueError(f"the transform {_describe(transform)} pads normalised values; pad before Normalize")
            return None
        levels = [round(value * 255) if self.is_scaled else round(value) for value in values]
        return levels[0] if len(levels) == 1 else tuple(levels)


def _describe(transform: Any) -> str:
    text = " ".join(str(transform).split())
    name = getattr(transform, "__name__", type(transform).__name__)
    return text if text.startswith(name) and len(text) < 100 else name


def _pair(size: Any) -> tuple[int, int]:
    sides = (size,) if isinstance(size, int) else tuple(size)
    return (sides[0], sides[0]) if len(sides) == 1 else (sides[0], sides[1])


def _interpolation(transform: Any) -> str:
    mode = transform.interpolation
    if isinstance(mode, int):
        from PIL.Image import Resampling

        return Resampling(mode).name.lower()
    return str(getattr(mode, "value", mode))


def _resize(reader: _Reader, transform: Any) -> None:
    size, limit = transform.size, getattr(transform, "max_size", None)
    sides: Callable[[int, int], tuple[int, int]]
    if size is None:
        sides = longest(transform.max_size)
    elif isinstance(size, int) or len(size) == 1:
        sides = shortest(size if isinstance(size, int) else size[0], limit)
    else:
        sides = exactly(*size)
    _add_resize(reader, transform, sides)


def _add_resize(reader: _Reader, transform: Any, sides: Callable[[int, int], tuple[int, int]]) -> None:
    antialias = getattr(transform, "antialias", True)
    reader.steps.append(
        Resize(sides, _interpolation(transform), on_tensors=reader.is_tensor, antialias=bool(antialias))
    )


def _resize_keep_ratio(reader: _Reader, transform: Any) -> None:
    if transform.random_scale_prob or transform.random_aspect_prob or transform.longest not in (0, 1):
        raise ValueError(f"the transform {_describe(transform)} is random, or between two rules; use longest=0 or 1")
    height, width = transform.size
    sides: Callable[[int, int], tuple[int, int]] = cover(height, width, "nearest")
    if transform.longest:
        sides = within(height, width, "nearest")
    _add_resize(reader, transform, sides)


def _centre_crop(reader: _Reader, transform: Any) -> None:
    fill = reader.fill(transform) if hasattr(transform, "fill") else None if reader.is_normalised else 0
    reader.steps.append(Window(_pair(transform.size), fill=fill))


def _pad(reader: _Reader, transform: Any) -> None:
    padding = transform.padding
    sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    sides = sides * 4 if len(sides) == 1 else sides * 2 if len(sides) == 2 else sides
    left, top, right, bottom = sides
    reader.steps.append(Margins(left, top, right, bottom, reader.fill(transform)))


def _to_scaled(reader: _Reader, transform: Any) -> None:
    reader.is_tensor = True
    if not reader.is_scaled:
        reader.is_scaled = True
        reader.scale = reader.scale / 255


def _to_tensor(reader: _Reader, transform: Any) -> None:
    reader.is_tensor = True


def _to_dtype(reader: _Reader, transform: Any) -> None:
    dtype = transform.dtype
    if isinstance(dtype, Mapping):
        dtype = next(iter(dtype.values()))
    if transform.scale and dtype is not None and dtype.is_floating_point:
        _to_scaled(reader, transform)


def _normalise(reader: _Reader, transform: Any) -> None:
    mean, std = (
        torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten()
        for values in (transform.mean, transform.std)
    )
    reader.scale, reader.shift = reader.scale / std, (reader.shift - mean) / std
    reader.is_normalised = True


def _gray(reader: _Reader, transform: Any) -> None:
    reader.steps.append(Gray(transform.num_output_channels))


def _image_classification(reader: _Reader, transform: Any) -> None:
    reader.steps.append(Resize(shortest(transform.resize_size[0]), _interpolation(transform)))
    reader.steps.append(Window(_pair(transform.crop_size)))
    _to_scaled(reader, transform)
    _normalise(reader, transform)


def _semantic_segmentation(reader: _Reader, transform: Any) -> None:
    if transform.resize_size:
        reader.steps.append(Resize(shortest(transform.resize_size[0]), _interpolation(transform)))
    _to_scaled(reader, transform)
    _normalise(reader, transform)


def _compose(reader: _Reader, transform: Any) -> None:
    reader.read(list(transform.transforms))


def _nothing(reader: _Reader, transform: Any) -> None:
    pass


_READERS: dict[str, Callable[[_Reader, Any], None]] = {
    "CenterCrop": _centre_crop,
    "CenterCropOrPad": _centre_crop,
    "Compose": _compose,
    "ConvertImageDtype": _to_scaled,
    "Grayscale": _gray,
    "Identity": _nothing,
    "ImageClassification": _image_classification,
    "MaybePILToTensor": _to_tensor,
    "MaybeToTensor": _to_scaled,
    "Normalize": _normalise,
    "ObjectDetection": _to_scaled,
    "PILToTensor": _to_tensor,
    "Pad": _pad,
    "RGB": _nothing,
    "Resize": _resize,
    "ResizeKeepRatio": _resize_keep_ratio,
    "SemanticSegmentation": _semantic_segmentation,
    "ToDtype": _to_dtype,
    "ToImage": _to_tensor,
    "ToPureTensor": _nothing,
    "ToTensor": _to_scaled,
}


def recipe_of_transform(transform: Any) -> Recipe:
    """Read a transform of torchvision or timm, or a Compose, Sequential or list of them.

    Raises:
        ValueError: one of them cannot be followed; the message names it.
    """
    reader = _Reader()
    reader.read(transform)
    return reader.recipe(_describe(transform), transform)


def recipe_of_timm(config: Mapping[str, Any]) -> Recipe:
    """Read a ``pretrained_cfg`` of timm: the transforms that timm itself makes of it."""
    import timm.data

    data: Any = timm.data
    return recipe_of_transform(data.create_transform(**data.resolve_data_config({}, pretrained_cfg=dict(config))))
