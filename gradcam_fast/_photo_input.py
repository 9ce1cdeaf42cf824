"""Photos as an explainer's input: prepared for the model, and kept with their boxes for the explanation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ._model.transformers_pipeline import prepares_photos
from .photos import are_photos, photo_tensor, read_photos
from .visual.placement import place, whole

if TYPE_CHECKING:
    from .explanation import Explanation
    from .preprocess import Preprocess

__all__ = ["PhotoInput", "Photos"]

ORIGINAL = "original"


@dataclass(frozen=True)
class Photos:
    """Photos that were read and prepared.

    Attributes:
        images: the model's input (B,C,h,w), on its device.
        photos: (3,H,W) uint8 RGB on the CPU, upright.
        boxes: (B,4), the part of each photo that its image shows.
        full_size: whether the heatmaps are wanted at the photos' own pixels.
    """

    images: torch.Tensor
    photos: tuple[torch.Tensor, ...]
    boxes: torch.Tensor
    full_size: bool

    def added_to(self, explanation: Explanation) -> Explanation:
        """The explanation with the photos and boxes; its heatmaps at the photos' pixels if they are wanted so."""
        if not self.full_size:
            return replace(explanation, photos=self.photos, boxes=self.boxes)
        size = self.photos[0].shape[-2], self.photos[0].shape[-1]
        heatmaps = []
        for heatmap, box in zip(explanation.heatmap, self.boxes.tolist(), strict=True):
            shown, inside = place(heatmap, size, tuple(box))
            heatmaps.append(torch.where(inside, shown, 0))
        boxes = torch.tensor([whole(size)] * len(self.boxes), dtype=torch.float32, device="cpu")
        return replace(explanation, heatmap=torch.stack(heatmaps), photos=self.photos, boxes=boxes)


class PhotoInput:
    """Recognises photos among what an explainer is called with, and prepares them.

    Args:
        model: the module that runs.
        preprocess: what ``Preprocess.of`` takes; None: photos are refused, unless the model carries its preprocessing,
            as those of timm and pipelines of transformers do.
        size: that of the heatmaps; only ``"original"`` matters here.
        given: the model as the caller gave it, with all that is around the module that runs.
    """

    def __init__(self, model: torch.nn.Module, preprocess: Any, size: Any, given: Any = None) -> None:
        self._model = model
        self._own = next((source for source in (given, model) if _carries_preprocessing(source)), None)
        self._preprocess = None if preprocess is None else _preprocess_of(preprocess)
        self._full_size = isinstance(size, str) and size == ORIGINAL

    def __str__(self) -> str:
        """A part of the explainer's words."""
        return "" if self._preprocess is None else f", {self._preprocess}"

    def read(self, images: Any) -> Photos | None:
        """The photos, or None for anything else: floating tensors and their like are inputs as they are.

        Raises:
            TypeError, ValueError: something that is no photo, no preprocessing, or photos of several sizes where
                heatmaps of their own size are asked for.
        """
        if not are_photos(images) and not (self._preprocess is not None and _are_tensors_of_photos(images)):
            return None
        if self._preprocess is None and isinstance(images, numpy.ndarray) and self._own is None:
            return None  # more likely an input that should have been a tensor, which is refused with these words
        preprocess = self._preprocess = self._preprocess or self._of_model()
        upright = read_photos(images)
        sizes = sorted({(photo.height, photo.width) for photo in upright})
        if self._full_size and len(sizes) > 1:
            raise ValueError(
                f"size='original' was asked for photos of sizes {', '.join(map(str, sizes[:4]))}, whose heatmaps make "
                "no batch; explain them one by one, or leave size out: pictures place each heatmap by its box"
            )
        prepared = preprocess(upright)
        weight = next(self._model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        tensors = tuple(photo_tensor(photo) for photo in upright)
        return Photos(prepared.images.to(weight.device, dtype), tensors, prepared.boxes, self._full_size)

    def _of_model(self) -> Preprocess:
        if self._own is not None:
            return _preprocess_of(self._own)
        raise ValueError(
            "photos were given, and how they become the model's input is not known; give Explainer(model, "
            "preprocess=...): weights or transforms of torchvision, a model of timm, an image processor of "
            "transformers, or gradcam_fast.Preprocess(size, mean=..., std=...)"
        )


def _carries_preprocessing(model: Any) -> bool:
    """Whether a model is one of timm, or a pipeline of transformers for images."""
    return prepares_photos(model) or bool(getattr(model, "pretrained_cfg", None))


def _preprocess_of(source: Any) -> Preprocess:
    from .preprocess import Preprocess  # here, because few programs need it

    return Preprocess.of(source)


def _are_tensors_of_photos(images: Any) -> bool:
    """Whether uint8 tensors, or a list in which each member is a photo or a tensor."""
    if isinstance(images, list):
        return bool(images) and all(isinstance(image, torch.Tensor) or are_photos(image) for image in images)
    return isinstance(images, torch.Tensor) and images.dtype == torch.uint8
