"""What an evaluation compares, and by which metrics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...metrics import BASELINE_MAPS, METRICS

if TYPE_CHECKING:
    from ...pipeline.networks import Network
    from ..coco_file import BoxFile

__all__ = ["AUTO", "DEFAULT_METRICS", "METRICS_OF_BOXES", "Plan"]

AUTO = "auto"
"""The name of the layer that is found."""

DEFAULT_METRICS = ("insertion", "deletion", "confidence_drop", "gini")
METRICS_OF_BOXES = tuple(name for name, metric in METRICS.items() if metric.needs_objects)


@dataclass(frozen=True)
class Plan:
    """What is compared: each method at each layer, beside the baselines.

    Attributes:
        methods: as in :func:`gradcam_fast.explain`.
        layers: dotted names, or `AUTO`.
        metrics: names in :data:`gradcam_fast.metrics.METRICS`; best and worst cases are those of the first one.
        target: the class that is explained in all photos; None for each photo's most probable one.
        boxes: where the objects are; needed by the metrics of `METRICS_OF_BOXES`.
        cases: how many of the best and of the worst photos are shown for each method and layer.
    """

    methods: tuple[str, ...] = ("gradcam",)
    layers: tuple[str, ...] = (AUTO,)
    metrics: tuple[str, ...] = DEFAULT_METRICS
    target: int | None = None
    boxes: BoxFile | None = None
    cases: int = 3

    @property
    def contenders(self) -> dict[str, dict[str, Any]]:
        """The method and layer of each row of the table, by its name; the baselines are not among them."""
        named = {}
        for method in self.methods:
            for layer in self.layers:
                name = method if len(self.layers) == 1 else f"{method}, {layer}"
                named[name] = {"method": method, "layer": None if layer == AUTO else layer}
        return named

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of all rows of the table: contenders, then baselines."""
        return (*self.contenders, *BASELINE_MAPS)

    def settings(self, network: Network) -> dict[str, Any]:
        """What the values depend on, as plain values: a run with others cannot continue this one."""
        boxes = None if self.boxes is None else hashlib.sha256(self.boxes.path.read_bytes()).hexdigest()
        return {
            "model": network.title,
            "input": list(network.input_size),
            "probabilities": network.probabilities,
            "methods": list(self.methods),
            "layers": list(self.layers),
            "metrics": list(self.metrics),
            "target": self.target,
            "boxes": boxes,
        }
