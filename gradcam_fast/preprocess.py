"""Photos as the tensor that a network expects, and which part of each photo that tensor shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import floor, inf, isclose
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from ._preprocessing.steps import Gray, Resize, Window, cover, exactly, in_bounded_memory, within
from .photos import photo_tensor, read_photos

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ._preprocessing.steps import Box, Fill, Step

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Prepared", "Preprocess"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Prepared(NamedTuple):
    """What a network is given, and where it looks.

    Attributes:
        images: (B,C,h,w) float32 on the CPU.
        boxes: (B,4) float32, the part of each photo that its image shows: left, top, right, bottom in pixels of the
            upright photo. It reaches beyond the photo where the image is padded.
    """

    images: Tensor
    boxes: Tensor


class Preprocess:
    """How photos become a network's input: resized, cut or padded, then normalised.

    Call it with a photo or several, of any sizes; it returns the images and their boxes. :meth:`of` makes it from what
    a network was published with. This constructor makes it from numbers.

    Args:
        size: (height, width) of the input in pixels, or one integer for both.
        mean, std: per channel on the [0,1] scale; the input is ``(rgb - mean) / std``. One number each for a network
            that takes gray images.
        fit: ``crop`` shows the middle of the photo; ``stretch`` squeezes the whole photo into the input, or its middle
            if ``crop`` is below 1; ``letterbox`` shows the whole photo and pads it.
        crop: in (0,1], the share of the shorter side that the network sees (torchvision's 224/256, timm's
            ``crop_pct``).
        interpolation: ``bilinear``, ``bicubic``, ``nearest``, ``box``, ``hamming`` or ``lanczos``, as Pillow does it.
        place: of a letterbox: the photo in the ``centre``, as YOLO does it, or in the upper left ``corner``.
        fill: of a letterbox: a level from 0 to 255, or one per channel; None is 0 in the normalised input.

    Raises:
        ValueError: a number out of its range.
        ImportError: Pillow is not installed.

    Example:
        >>> import numpy
        >>> preprocess = Preprocess(size=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop=0.5)
        >>> images, boxes = preprocess(numpy.full((4, 8, 3), 255, numpy.uint8))
        >>> images.shape, float(images.min()), boxes.tolist()
        (torch.Size([1, 3, 2, 2]), 1.0, [[3.0, 1.0, 5.0, 3.0]])
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        fit: Literal["crop", "stretch", "letterbox"] = "crop",
        crop: float = 1.0,
        interpolation: str = "bilinear",
        place: Literal["centre", "corner"] = "centre",
        fill: int | Sequence[int] | None = 0,
    ) -> None:
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ValueError(f"size={size} is not an image size; give (height, width) in pixels, both at least 1")
        if fit not in ("crop", "stretch", "letterbox"):
            raise ValueError(f"fit={fit!r} is unknown; choose crop, stretch or letterbox")
        if not (isinstance(crop, (int, float)) and 0 < crop <= 1):
            raise ValueError(f"crop={crop!r} is not in (0,1]; give the visible share of the shorter side")
        if fit == "letterbox" and crop != 1:
            raise ValueError(f"crop={crop} cuts what fit='letterbox' pads; leave crop out")
        if place not in ("centre", "corner"):
            raise ValueError(f"place={place!r} is unknown; choose centre or corner")
        # The share is a rounded float: 224 / (224 / 256) must not become 255.
        height, width = (floor(side / crop + 1e-6) for side in sides)
        rule = {"crop": cover, "stretch": exactly, "letterbox": within}[fit]
        steps: list[Step] = [Resize(rule(height, width), interpolation)]
        if fit != "stretch" or crop != 1:
            colour: Fill = fill if fill is None or isinstance(fill, int) else tuple(fill)
            steps.append(Window(sides, place if fit == "letterbox" else "centre", colour))
        means, stds = ((value,) if isinstance(value, (int, float)) else tuple(value) for value in (mean, std))
        if len(means) == len(stds) == 1:
            steps.append(Gray())
        self._set(steps, means, stds)

    @classmethod
    def of(cls, source: Any) -> Preprocess:
        """The preprocessing that a network was published with; checked on test photos where the original can be run.

        Args:
            source: a ``Preprocess``; weights of torchvision (``ResNet50_Weights.DEFAULT``) or their ``transforms()``; a
                ``Compose`` of torchvision's transforms, v1 or v2, also as timm makes it; a model of timm, or its
                ``pretrained_cfg``; an image processor, processor or pipeline of transformers; the arguments of
                ``Preprocess`` as a dict; or what :meth:`to_dict` returned.

        Raises:
            TypeError: something else.
            ValueError: a transform that is random, unknown, or gives other pixels than its description; the message
                names it.

        Example:
            >>> from torchvision.models import ResNet50_Weights
            >>> preprocess = Preprocess.of(ResNet50_Weights.DEFAULT)
            >>> preprocess.size, preprocess.box((464, 232))
            ((224, 224), (120.0, 4.0, 344.0, 228.0))
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping) and "steps" in source:
            return cls._of_plain_values(source)
        if isinstance(source, Mapping) and "size" in source:
            return cls(**source)
        from ._preprocessing.sources import recipe_of
        from ._preprocessing.verification import verify

        recipe = recipe_of(source)
        preprocess = cls.__new__(cls)
        preprocess._set(recipe.steps, recipe.mean, recipe.std, reverse_channels=recipe.reverse_channels)
        if recipe.original is not None:
            verify(preprocess, recipe.original, recipe.title)
        return preprocess

    @classmethod
    def _of_plain_values(cls, values: Mapping[str, Any]) -> Preprocess:
        from ._preprocessing.plain_values import from_plain_values

        try:
            steps = [from_plain_values(step) for step in values["steps"]]
            mean, std, reversed_channels = values["mean"], values["std"], bool(values["reverse_channels"])
        except (TypeError, KeyError) as error:
            raise ValueError(f"the preprocessing is of another version ({error}); use that gradcam_fast") from None
        preprocess = cls.__new__(cls)
        preprocess._set(steps, mean, std, reverse_channels=reversed_channels)
        return preprocess

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, which JSON can hold; :meth:`of` makes the same preprocessing of them.

        Returns:
            The arguments of ``Preprocess``, where some make this one; else its steps.

        Example:
            >>> preprocess = Preprocess(224, crop=0.875)
            >>> preprocess.to_dict()["fit"], Preprocess.of(preprocess.to_dict()) == preprocess
            ('crop', True)
        """
        from ._preprocessing.plain_values import as_plain_values

        if self.size is not None:
            arguments = self._arguments()
            if Preprocess(**arguments) == self:
                return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
        steps = [as_plain_values(step) for step in self.steps]
        values = {"mean": list(self.mean), "std": list(self.std), "reverse_channels": self.reverse_channels}
        return {"steps": steps, **values}

    def _set(
        self, steps: Sequence[Step], mean: Sequence[float], std: Sequence[float], *, reverse_channels: bool = False
    ) -> None:
        self.steps, self.mean, self.std = tuple(steps), tuple(mean), tuple(std)
        self.reverse_channels = reverse_channels
        lengths = {len(self.mean), len(self.std)}
        if lengths not in ({1}, {3}) or not all(0 < value < inf for value in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std} do not fit; give three numbers each, or one for gray, with std "
                "above 0"
            )
        geometry = [step for step in self.steps if not isinstance(step, Gray)]
        if any(getattr(step, "fill", 0) is None for step in geometry[:-1]):
            raise ValueError("fill=None is 0 in the normalised input, so it must come last; give a level instead")

    def changed(
        self,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: float | Literal["auto"] | None = "auto",
    ) -> Preprocess:
        """The same with other numbers; None leaves a number as it is, but for ``crop``, where it means ``stretch``.

        Another size keeps the share of the photo that is seen, and how the photo is fitted into the input.
        """
        steps: Sequence[Step] = self.steps
        if size is not None or crop != "auto":
            fill = next((step.fill for step in self.steps if isinstance(step, Window)), 0)
            fit, share = self._fit() if crop == "auto" else ("stretch", 1.0) if crop is None else ("crop", crop)
            steps = Preprocess(
                size or self._fixed_size(),
                fit=fit,
                crop=share,
                interpolation=next((step.interpolation for step in self.steps if isinstance(step, Resize)), "bilinear"),
                fill=fill if fit == "letterbox" else 0,
            ).steps
        copy = Preprocess.__new__(Preprocess)
        copy._set(steps, mean or self.mean, std or self.std, reverse_channels=self.reverse_channels)
        return copy

    def _fit(self) -> tuple[Literal["crop", "stretch", "letterbox"], float]:
        """How photos are fitted into the input, and the share of the shorter side that is seen."""
        shares = []
        for width, height in ((2000, 1000), (1000, 2000)):
            left, top, right, bottom = self.box((width, height))
            shares.append(((right - left) / width, (bottom - top) / height))
        if max(max(sides) for sides in shares) > 1:
            return "letterbox", 1.0
        fit: Literal["crop", "stretch"] = "stretch" if all(isclose(*sides) for sides in shares) else "crop"
        return fit, max(max(sides) for sides in shares)

    def _arguments(self) -> dict[str, Any]:
        """Arguments of ``Preprocess`` that fit photos in the same way, if any do."""
        fit, crop = self._fit()
        window = next((step for step in self.steps if isinstance(step, Window)), None)
        arguments: dict[str, Any] = {"size": self.size, "mean": self.mean, "std": self.std, "fit": fit, "crop": crop}
        arguments["interpolation"] = next(
            (step.interpolation for step in self.steps if isinstance(step, Resize)), "bilinear"
        )
        if window is not None:
            arguments |= {"place": window.place, "fill": window.fill}
        return arguments

    def _fixed_size(self) -> tuple[int, int]:
        if self.size is None:
            raise ValueError(f"the input of {self} has no fixed size; give size=(height, width)")
        return self.size

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the input; None if it depends on the photo."""
        sizes = {self._canvas(size)[0] for size in ((97, 211), (211, 97), (640, 640), (31, 30))}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def crop(self) -> float:
        """The share of a photo's shorter side that the network sees."""
        return self._fit()[1]

    def box(self, size: tuple[int, int]) -> Box:
        """The part that the network sees, (left, top, right, bottom) in pixels of a photo of (width, height)."""
        return self._canvas((size[1], size[0]))[1]

    def seen_box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The same in whole pixels, at least one of them."""
        left, top, right, bottom = map(round, self.box(size))
        # In a photo of a pixel or two, the middle part may be empty after rounding.
        left, top = min(left, size[0] - 1), min(top, size[1] - 1)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def seen(self, photo: Image) -> Image:
        """The part of a photo that the network sees, at the photo's own resolution: what its heatmap covers."""
        return photo.crop(self.seen_box(photo.size))

    def __call__(self, photos: Any) -> Prepared:
        """Prepare a photo, or several of any sizes.

        Args:
            photos: a path; a PIL image, whose EXIF orientation is applied; an array (H,W), (H,W,1), (H,W,3) or (H,W,4);
                a tensor (H,W), (1,H,W), (3,H,W) or (4,H,W); arrays and tensors are uint8 or floating in [0,1]; a list
                of these; or a batch (B,H,W,C) or (B,C,H,W).

        Returns:
            The images and the boxes. Images of different sizes are padded to the largest by 0, right and below.

        Raises:
            TypeError, ValueError: something that is no photo.
            gradcam_fast.exceptions.UnreadablePhotoError: a file that is no photo.
        """
        upright = read_photos(photos)
        boxes = [self.box(photo.size) for photo in upright]
        images = [self._image(photo) for photo in upright]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        batch = images[0].new_zeros(len(images), len(images[0]), height, width)
        for place, image in enumerate(images):
            rows, columns = image.shape[1:]
            batch[place, :, :rows, :columns] = image
            left, top, right, bottom = boxes[place]
            boxes[place] = left, top, left + (right - left) * width / columns, top + (bottom - top) * height / rows
        return Prepared(batch, torch.tensor(boxes, dtype=torch.float32, device="cpu"))

    def _canvas(self, size: tuple[int, int]) -> tuple[tuple[int, int], Box]:
        """(height, width) of the input for a photo of (height, width), and its box."""
        box: Box = (0.0, 0.0, float(size[1]), float(size[0]))
        for step in self.steps:
            size, box = step.canvas(size, box)
        return size, box

    def _image(self, photo: Image) -> Tensor:
        blank = None
        for step in in_bounded_memory(self.steps, (photo.height, photo.width)):
            if getattr(step, "fill", 0) is None:
                blank = step.edges((photo.height, photo.width)), photo.size  # type: ignore[union-attr]
            photo = step.apply(photo)
        pixels = photo_tensor(photo)
        if self.reverse_channels:
            pixels = pixels.flip(0)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None] for values in (self.mean, self.std)
        )
        image = pixels.to(torch.float32).div_(255).sub(mean).div_(std)
        if blank is not None:
            (left, top, _, _), (width, height) = blank
            inside = torch.zeros(image.shape[1:], dtype=torch.bool, device="cpu")
            inside[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)] = True
            image = torch.where(inside, image, 0)
        return image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocess) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.steps, self.mean, self.std, self.reverse_channels

    def __repr__(self) -> str:
        """The steps in words, and the numbers."""
        steps = ", ".join(map(str, self.steps)) or "nothing"
        order = ", channels reversed" if self.reverse_channels else ""
        return f"Preprocess({steps}; mean {_short(self.mean)}, std {_short(self.std)}{order})"


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
