"""What the service measures of itself and of its maps: one table of metrics, for Prometheus or for Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from .map_statistics import map_statistics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..pipeline.results import PhotoResult

__all__ = ["METRICS", "Instrument", "Metric", "ServiceMetrics", "prometheus_instruments"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHARES = tuple(number / 20 for number in range(1, 21))


@dataclass(frozen=True)
class Metric:
    """A metric: its name without the prefix ``gradcam_fast_``, and what it measures."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = (
    Metric("requests_total", "counter", "Requests answered, by verb and status.", ("model", "verb", "status")),
    Metric("request_seconds", "histogram", "From the body's end to the answer.", ("model", "verb"), _SECONDS),
    Metric("stage_seconds", "histogram", "Of a photo in one stage: decode, queue, model, encode.",
           ("model", "stage"), _SECONDS),
    Metric("batch_photos", "histogram", "Photos in a batch of the model.", ("model",), (1, 2, 4, 8, 16, 32, 64)),
    Metric("queued_photos", "gauge", "Photos that wait for the model, when a batch begins."),
    Metric("photos_total", "counter", "Photos predicted, by whether they were explained.", ("model", "explained")),
    Metric("maps_total", "counter", "Maps made, by whether they are finite and not flat.", ("model", "valid")),
    Metric("map_entropy", "histogram", "Entropy of a map, from 0 (one hot cell) to 1 (even).", ("model",), _SHARES),
    Metric("map_border_mass", "histogram", "Share of a map that lies at the border.", ("model",), _SHARES),
    Metric("map_centre_x", "histogram", "Centre of mass of a map, from 0 (left) to 1 (right).", ("model",), _SHARES),
    Metric("map_centre_y", "histogram", "Centre of mass of a map, from 0 (top) to 1 (bottom).", ("model",), _SHARES),
    Metric("reloads_total", "counter", "Times a model was loaded again.", ("model",)),
)  # fmt: skip


class Instrument(Protocol):
    """Measures one metric: a counter adds the value, a gauge is set to it, a histogram observes it."""

    def __call__(self, value: float, **labels: str) -> None: ...


class ServiceMetrics:
    """The instruments of all metrics, made by ``make``."""

    def __init__(self, make: Callable[[Metric], Instrument]) -> None:
        self._instruments = {metric.name: make(metric) for metric in METRICS}

    def measure(self, name: str, value: float, **labels: str) -> None:
        """Measure a value of one of `METRICS`."""
        self._instruments[name](value, **labels)

    @contextmanager
    def stage(self, model: str, stage: str) -> Iterator[None]:
        """Measure how long the block takes, as a stage of a photo."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.measure("stage_seconds", time.perf_counter() - start, model=model, stage=stage)

    def photo(self, model: str, result: PhotoResult) -> None:
        """Measure what was found in a photo."""
        explained = bool(result.maps.size) and result.raw_min[0] == result.raw_min[0]  # NaN: not chosen
        self.measure("photos_total", 1, model=model, explained=str(explained).lower())
        if not explained:
            return
        for heatmap, valid in zip(result.maps, result.valid, strict=True):
            self.measure("maps_total", 1, model=model, valid=str(valid).lower())
            statistics = map_statistics(heatmap) if valid else None
            if statistics is not None:
                for name, value in statistics._asdict().items():
                    self.measure(f"map_{name}", value, model=model)


def prometheus_instruments(registry: CollectorRegistry) -> Callable[[Metric], Instrument]:
    """Makes instruments of prometheus_client, which ``registry`` collects."""
    from prometheus_client import Counter, Gauge, Histogram

    def make(metric: Metric) -> Instrument:
        name, labels = f"gradcam_fast_{metric.name}", metric.labels
        if metric.kind == "counter":
            counter = Counter(name, metric.description, labels, registry=registry)
            return lambda value, **of: (counter.labels(**of) if of else counter).inc(value)
        if metric.kind == "gauge":
            gauge = Gauge(name, metric.description, labels, registry=registry)
            return lambda value, **of: (gauge.labels(**of) if of else gauge).set(value)
        histogram = Histogram(name, metric.description, labels, registry=registry, buckets=metric.buckets)
        return lambda value, **of: (histogram.labels(**of) if of else histogram).observe(value)

    return make
