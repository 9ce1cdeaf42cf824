"""COCO JSON: boxes of objects read for photos, boxes and masks of hot regions written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy

from ..exceptions import PhotoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BoxFile", "PhotoRegions", "Region", "document", "run_lengths"]

Box = tuple[float, float, float, float]


@dataclass
class _Entry:
    """An image of the file: its name, its size or None, and boxes x, y, width, height."""

    name: PurePath
    size: tuple[int, int] | None
    boxes: list[Box] = field(default_factory=list)


class BoxFile:
    """The boxes in a COCO JSON file, by photo; categories and masks in it are not used.

    Args:
        path: of a file with ``images`` (``id``, ``file_name``, and if known ``width``, ``height``) and ``annotations``
            (``image_id``, ``bbox`` as x, y, width, height in pixels).

    Raises:
        ValueError: the file holds something else; in one sentence what.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no JSON ({error}); give a file in the format of COCO") from None
        if not isinstance(content, dict) or not all(
            isinstance(content.get(k), list) for k in ("images", "annotations")
        ):
            raise ValueError(f"{path} has no lists 'images' and 'annotations'; give a file in the format of COCO")
        entries = dict(self._entry(image) for image in content["images"])
        for annotation in content["annotations"]:
            box = self._box(annotation)
            if annotation.get("image_id") not in entries:
                raise ValueError(
                    f"{path}: an annotation is of image {annotation.get('image_id')!r}, which is not listed"
                )
            if box[2] > 0 and box[3] > 0:
                entries[annotation["image_id"]].boxes.append(box)
        self._by_name: dict[str, list[_Entry]] = {}
        for entry in entries.values():
            self._by_name.setdefault(entry.name.name, []).append(entry)

    def __contains__(self, photo: Path) -> bool:
        return self._find(photo) is not None

    def boxes_of(self, photo: Path, size: tuple[int, int]) -> list[Box]:
        """The boxes (left, top, right, bottom) of a photo of (width, height); empty if the file does not list it.

        A photo is listed if its path ends in the ``file_name``.

        Raises:
            PhotoError: the boxes are of a photo of another size.
        """
        entry = self._find(photo)
        if entry is None:
            return []
        if entry.size not in (None, size):
            there, here = (f"{width} x {height}" for width, height in (entry.size, size))
            raise PhotoError(f"{photo}: has {here} pixels, but its boxes in {self.path.name} are of {there}")
        return [(x, y, x + width, y + height) for x, y, width, height in entry.boxes]

    def _find(self, photo: Path) -> _Entry | None:
        fitting = [
            entry
            for entry in self._by_name.get(photo.name, [])
            if photo.parts[-len(entry.name.parts) :] == entry.name.parts
        ]
        return max(fitting, key=lambda entry: len(entry.name.parts), default=None)

    def _entry(self, image: Any) -> tuple[Any, _Entry]:
        if not isinstance(image, dict) or "id" not in image or not isinstance(image.get("file_name"), str):
            raise ValueError(f"{self.path}: an image has no id or file_name; give a file in the format of COCO")
        width, height = image.get("width"), image.get("height")
        return image["id"], _Entry(PurePath(image["file_name"]), (width, height) if width and height else None)

    def _box(self, annotation: Any) -> Box:
        box = annotation.get("bbox") if isinstance(annotation, dict) else None
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in box)
        ):
            raise ValueError(f"{self.path}: an annotation has bbox {box!r}; expected [x, y, width, height] in pixels")
        return box[0], box[1], box[2], box[3]


@dataclass(frozen=True)
class Region:
    """A hot region of a heatmap, in pixels of the photo.

    Attributes:
        category: the class that the heatmap explains.
        box: x, y, width, height.
        area: in pixels.
        score: the probability of the class; NaN where it is not known.
        mask: (H,W) bool, or None if only the box is wanted.
    """

    category: int
    box: Box
    area: int
    score: float
    mask: NDArray[Any] | None = None


@dataclass(frozen=True)
class PhotoRegions:
    """The hot regions of a photo of (width, height), named as its path was given."""

    path: Path
    size: tuple[int, int]
    regions: Sequence[Region]


def document(photos: Sequence[PhotoRegions], names: Sequence[str], info: Mapping[str, Any]) -> dict[str, Any]:
    """The regions as a COCO document; categories are those that occur, under the numbers of the network's classes.

    Args:
        names: of the network's classes.
        info: how the regions were made.
    """
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(photos, 1):
        for region in photo.regions:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": region.category,
                "bbox": list(region.box),
                "area": region.area,
                "iscrowd": 0,
            }
            if not math.isnan(region.score):
                annotation["score"] = region.score
            if region.mask is not None:
                annotation["segmentation"] = {"size": list(region.mask.shape), "counts": run_lengths(region.mask)}
            annotations.append(annotation)
    return {
        "info": dict(info),
        "images": [
            {"id": number, "file_name": photo.path.as_posix(), "width": photo.size[0], "height": photo.size[1]}
            for number, photo in enumerate(photos, 1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": names[number]}
            for number in sorted({annotation["category_id"] for annotation in annotations})
        ],
    }


def run_lengths(mask: NDArray[Any]) -> list[int]:
    """How many pixels are outside, inside, outside ... of a mask (H,W), column by column: COCO's uncompressed RLE.

    Example:
        >>> import numpy
        >>> run_lengths(numpy.array([[False, True], [False, True]])), run_lengths(numpy.array([[True]]))
        ([2, 2], [0, 1])
    """
    pixels = mask.ravel(order="F")
    edges = numpy.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts: list[int] = numpy.diff([0, *edges, len(pixels)]).tolist()
    return [0, *counts] if len(pixels) and pixels[0] else counts
