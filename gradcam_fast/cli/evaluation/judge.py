"""Measures the heatmaps of batches of photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ... import Explainer
from ...metrics import compare
from ...probabilities import RULES, probabilities_of
from ...targets.outputs import as_rows
from .value_table import PhotoValues

if TYPE_CHECKING:
    from torch import Tensor

    from ...pipeline.networks import Network
    from ...pipeline.results import LoadedPhoto
    from .plan import Plan
    from .run import EvaluationSettings

__all__ = ["Judge"]


class Judge:
    """Explains photos by every method at every layer, and measures the heatmaps and the baselines beside them.

    Args:
        network: it is moved to the device of the settings, in their type.
        plan: what is compared.
        settings: how the work is done.
        places: the number of each photo, from which its random heatmap is drawn.

    Raises:
        ValueError: an unknown layer or method.
    """

    def __init__(self, network: Network, plan: Plan, settings: EvaluationSettings, places: dict[Path, int]) -> None:
        self._network, self._plan, self._settings, self._places = network, plan, settings, places
        self._model = network.model.to(settings.device, settings.dtype)
        rule = network.probabilities if network.probabilities in RULES else "auto"
        self.explainers = {
            name: Explainer(self._model, probabilities=rule, **choices)  # type: ignore[arg-type]
            for name, choices in plan.contenders.items()
        }

    def __call__(self, photos: Sequence[LoadedPhoto]) -> list[PhotoValues]:
        """The values of each photo."""
        images = torch.cat([photo.input for photo in photos if photo.input is not None])
        images = images.to(self._settings.device, self._settings.dtype)
        with torch.no_grad():
            logits = as_rows(self._model(images))
        classes = logits.argmax(1)
        if self._plan.target is not None:
            classes = torch.full_like(classes, self._plan.target)
        probabilities = probabilities_of(logits, self._network.probabilities).gather(1, classes[:, None])[:, 0]
        comparison = compare(
            self.explainers,
            images,
            classes,
            metrics=self._plan.metrics,
            objects=None if self._plan.boxes is None else [self._boxes_of(photo) for photo in photos],
            batch_size=self._settings.batch_size,
            numbers=[self._places[Path(photo.path)] for photo in photos],
        )
        values = {
            row: torch.stack([found.cpu() for found in columns.values()], 1).tolist()
            for row, columns in comparison.values.items()
        }
        facts = zip(photos, classes.tolist(), probabilities.tolist(), strict=True)
        return [
            PhotoValues(
                str(photo.path),
                number,
                self._network.class_names[number],
                probability,
                {row: of_photos[place] for row, of_photos in values.items()},
            )
            for place, (photo, number, probability) in enumerate(facts)
        ]

    def _boxes_of(self, photo: LoadedPhoto) -> Tensor:
        """The boxes (n,4) of a photo in pixels of the network's input, as far as they are in it."""
        assert self._plan.boxes is not None
        height, width = self._network.input_size
        left, top, right, bottom = photo.box
        boxes = torch.tensor(self._plan.boxes.boxes_of(Path(photo.path), photo.size), dtype=torch.float64).reshape(
            -1, 4
        )
        boxes -= torch.tensor([left, top, left, top])
        boxes *= torch.tensor([width / (right - left), height / (bottom - top)]).repeat(2)
        boxes = boxes.minimum(torch.tensor([width, height]).repeat(2)).clamp(min=0)
        return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])].float()
