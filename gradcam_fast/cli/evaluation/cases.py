"""The best and the worst photos of each method and layer, with a picture of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy
import torch

from ... import Explainer
from ...exceptions import PhotoError
from ...metrics import METRICS
from ...pipeline.photo_reading import load_photo, read_photo
from ...visual.overlay import overlay
from ..output_files import write_whole
from ..picture_files import encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...pipeline.networks import Network
    from ...pipeline.results import LoadedPhoto
    from .plan import Plan
    from .run import EvaluationSettings
    from .value_table import PhotoValues, ValueTable

__all__ = ["Case", "best_and_worst", "draw_cases"]

# The longest side of a photo in a picture of a case, in pixels.
SIDE = 320
_GAP = 8
_BOX_COLOUR = (255, 255, 255)


@dataclass(frozen=True)
class Case:
    """A photo on which a contender did well or badly.

    Attributes:
        photo: its values.
        value: of the first metric.
        picture: the path of its picture, in the report's folder; empty if the photo cannot be read any more.
    """

    photo: PhotoValues
    value: float
    picture: str


def best_and_worst(values: Sequence[float], count: int, *, higher_is_better: bool) -> tuple[list[int], list[int]]:
    """The places of the best values, best first, and of the worst, worst first; NaN is neither, and no place is both.

    Example:
        >>> best_and_worst([0.1, 0.9, float("nan"), 0.5, 0.7], 2, higher_is_better=True)
        ([1, 4], [0, 3])
        >>> best_and_worst([0.1, 0.9, 0.5], 2, higher_is_better=False)
        ([0, 2], [1])
    """
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    ranked = sorted(known, key=lambda place: values[place], reverse=higher_is_better)
    best = ranked[:count]
    return best, [place for place in reversed(ranked) if place not in best][:count]


def draw_cases(
    network: Network, table: ValueTable, out: Path, plan: Plan, settings: EvaluationSettings
) -> Iterator[tuple[str, list[Case], list[Case]]]:
    """Of each contender its name, its best and its worst cases; their pictures are written to ``out``/pictures."""
    photos = list(table.photos.values())
    for name, choices in plan.contenders.items():
        values = [photo.values[name][0] for photo in photos]
        places = best_and_worst(values, plan.cases, higher_is_better=METRICS[plan.metrics[0]].higher_is_better)
        explainer = Explainer(network.model, **choices)
        cases: list[list[Case]] = []
        for kind, of_kind in zip(("best", "worst"), places, strict=True):
            cases.append([])
            for rank, place in enumerate(of_kind, 1):
                file = f"pictures/{re.sub(r'[^A-Za-z0-9.+]+', '-', name)}-{kind}-{rank}.jpg"
                is_drawn = _draw(photos[place], explainer, network, out / file, plan, settings)
                cases[-1].append(Case(photos[place], values[place], file if is_drawn else ""))
        yield name, *cases  # type: ignore[misc]


def _draw(
    photo: PhotoValues,
    explainer: Explainer,
    network: Network,
    path: Path,
    plan: Plan,
    settings: EvaluationSettings,
) -> bool:
    """Write the photo beside its overlay; tell whether the photo could be read."""
    try:
        read = read_photo(photo.photo, settings.max_pixels)
        loaded = load_photo(read, network.preprocess, path=Path(photo.photo), name="", longest=SIDE)
        boxes = [] if plan.boxes is None else plan.boxes.boxes_of(Path(photo.photo), loaded.size)
    except PhotoError:
        return False
    assert loaded.input is not None and loaded.pixels is not None
    images = loaded.input.to(settings.device, settings.dtype)
    heatmap = explainer(images, photo.number).heatmap[0].cpu()
    shown = torch.from_numpy(loaded.pixels.copy()).permute(2, 0, 1)
    over = overlay([shown], heatmap[None], box="whole")[0].permute(1, 2, 0).contiguous().numpy()
    for left, top, right, bottom in _on_shown(boxes, loaded):
        cv2.rectangle(over, (left, top), (right, bottom), _BOX_COLOUR, 2)
    gap = numpy.full((over.shape[0], _GAP, 3), 255, numpy.uint8)
    picture = numpy.ascontiguousarray(numpy.hstack([loaded.pixels, gap, over]))
    write_whole(path, encode(picture, ".jpg", quality=90, note=""))
    return True


def _on_shown(boxes: Sequence[Any], loaded: LoadedPhoto) -> NDArray[Any]:
    """Boxes of the photo in pixels of the part that is shown."""
    assert loaded.pixels is not None
    height, width = loaded.pixels.shape[:2]
    left, top, right, bottom = loaded.box
    corners = numpy.asarray(boxes, numpy.float64).reshape(-1, 4) - (left, top, left, top)
    scale = width / (right - left), height / (bottom - top)
    pixels: NDArray[Any] = numpy.rint(corners * (scale * 2)).astype(int)
    return pixels
