"""Photos as the tensor that a network expects, and which part of a photo that tensor shows."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Resampling

from ..photo_files import pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image
    from torch import Tensor

__all__ = ["INTERPOLATIONS", "Preprocessing"]

# A photo is not resized as a whole if that would make it larger than this, as a strip would be; 3 bytes a pixel.
_MAX_RESIZED_PIXELS = 1 << 25
INTERPOLATIONS = {name.lower(): kernel for name, kernel in Resampling.__members__.items()}
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How photos become a network's input: resized by Pillow, cropped to the middle, then normalised.

    Attributes:
        size: (height, width) of the input in pixels.
        mean, std: per channel on the [0,1] scale; the input is ``(rgb - mean) / std``.
        crop: None squeezes the whole photo to ``size``. A number in (0,1] is the share of the shorter side that the
            network sees, in the middle of the photo: torchvision's 224/256, timm's ``crop_pct``.
        interpolation: ``bicubic``, ``bilinear`` or another of `INTERPOLATIONS`, antialiased.
        squeeze: with ``crop``, whether the photo is squeezed to the input's proportions before the crop, as with timm's
            ``crop_mode="squash"``.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> from PIL import Image
        >>> preprocess = Preprocessing(size=(2, 2), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop=0.5)
        >>> preprocess([Image.new("RGB", (8, 4), (255, 0, 0))])[0, :, 0, 0]
        tensor([ 1., -1., -1.])
        >>> preprocess.seen(Image.new("RGB", (8, 4))).size
        (2, 2)
    """

    size: tuple[int, int]
    mean: Triple
    std: Triple
    crop: float | None = None
    interpolation: str = "bicubic"
    squeeze: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size={self.size} is not an image size; give (height, width) in pixels, both at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(0 < value < inf for value in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std} do not fit RGB; give three numbers each, with std above 0"
            )
        if self.crop is not None and not (isinstance(self.crop, (int, float)) and 0 < self.crop <= 1):
            raise ValueError(
                f"crop={self.crop!r} is not in (0,1]; give the visible share of the shorter side, or None to show all"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r} is unknown; use one of {', '.join(INTERPOLATIONS)}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of timm's ``pretrained_cfg``, equal to what ``timm.data.create_transform`` makes of it.

        Raises:
            ValueError: the model pads its photos with a border.
        """
        (height, width), mode = config["input_size"][-2:], config.get("crop_mode", "center")
        share = config.get("crop_pct", 0.875)
        if mode not in ("center", "squash") or share > 1:
            raise ValueError(
                f"the model pads its photos with a border (crop_mode {mode!r}, crop_pct {share}), which is not "
                "supported; give crop=None (--crop none) to squeeze the photos, or a crop in (0,1]"
            )
        # timm resizes to whole pixels, rounded down, and cuts from there.
        crop = height / floor(height / share)
        return cls(
            size=(height, width),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop=None if mode == "squash" and crop == 1 else crop,
            interpolation=config.get("interpolation", "bilinear"),
            squeeze=mode == "squash" and crop != 1,
        )

    def __call__(self, photos: Sequence[Image]) -> Tensor:
        """RGB photos of any sizes as one (B,3,height,width) float32 tensor on the CPU."""
        batch = torch.stack([pixels(self._resized(photo)) for photo in photos])
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None] for values in (self.mean, self.std)
        )
        return batch.float().div_(255).sub_(mean).div_(std)

    def seen(self, photo: Image) -> Image:
        """The part of a photo that the network sees, at the photo's own resolution: what its heatmap covers."""
        return photo.crop(self.seen_box(photo.size))

    def seen_box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part that the network sees, as (left, top, right, bottom) in pixels of a photo of (width, height)."""
        (rows, columns), (top, left) = self._layout(*size)
        x_scale, y_scale = size[0] / columns, size[1] / rows
        edges = left * x_scale, top * y_scale, (left + self.size[1]) * x_scale, (top + self.size[0]) * y_scale
        # In a photo of a pixel or two, the middle part may be empty after rounding.
        left, top = min(round(edges[0]), size[0] - 1), min(round(edges[1]), size[1] - 1)
        return left, top, max(round(edges[2]), left + 1), max(round(edges[3]), top + 1)

    def _resized(self, photo: Image) -> Image:
        (rows, columns), (top, left) = self._layout(*photo.size)
        if rows * columns > max(_MAX_RESIZED_PIXELS, photo.width * photo.height):
            x_scale, y_scale = photo.width / columns, photo.height / rows
            box = left * x_scale, top * y_scale, (left + self.size[1]) * x_scale, (top + self.size[0]) * y_scale
            return photo.resize(self.size[::-1], INTERPOLATIONS[self.interpolation], box)
        # resize(box=...) would be cheaper, but rounds differently from the preprocessing of the training.
        resized = photo.resize((columns, rows), INTERPOLATIONS[self.interpolation])
        return resized.crop((left, top, left + self.size[1], top + self.size[0]))

    def _layout(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) to which the whole photo is resized, and (top, left) of the crop in the resized photo."""
        if self.crop is None:
            return self.size, (0, 0)
        # The share is a rounded float: 224 / (224 / 256) must not become 255.
        rows, columns = (floor(side / self.crop + 1e-6) for side in self.size)
        if not self.squeeze:
            if rows * width >= columns * height:  # the photo is wider than the input: its rows decide
                columns = max(columns, rows * width // height)
            else:
                rows = max(rows, columns * height // width)
        # Rounded as torchvision does it, halves to even.
        return (rows, columns), (round((rows - self.size[0]) / 2), round((columns - self.size[1]) / 2))
