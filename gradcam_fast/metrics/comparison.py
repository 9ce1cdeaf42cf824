"""A table of methods and metrics, with confidence intervals: which method and layer explain a model best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..explainer import Explainer
from ..explanation import Explanation
from .baselines import BASELINE_MAPS, centre_map, edge_map, random_map, saliency_map
from .confidence import confidence_drop, confidence_increase
from .localisation import iou_at, mass_accuracy, pointing_game, rank_accuracy
from .perturbation import deletion, insertion
from .road import road
from .stability import complexity
from .subject import images_at_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from torch import Tensor

    from ..types import Target
    from .localisation import Objects

__all__ = ["METRICS", "Comparison", "compare"]


_RESAMPLES = 2000
# Of the bootstrap, to bound its memory.
_NUMBERS_AT_ONCE = 4_000_000


class _Metric(NamedTuple):
    """A column of the table.

    Attributes:
        compute: from (explainer, images, explanation, batch_size), or (heatmaps, objects) if it compares with boxes or
            masks, to (B,).
        higher_is_better: which way is good.
        needs_objects: whether it compares with boxes or masks.
    """

    compute: Callable[..., Tensor]
    higher_is_better: bool
    needs_objects: bool = False


METRICS = {
    "insertion": _Metric(lambda *asked, **how: insertion(*asked, **how).area, True),
    "deletion": _Metric(lambda *asked, **how: deletion(*asked, **how).area, False),
    "road": _Metric(lambda *asked, **how: road(*asked, **how).combined, True),
    "confidence_drop": _Metric(confidence_drop, False),
    "confidence_increase": _Metric(confidence_increase, True),
    "gini": _Metric(lambda explainer, images, explanation, **_: complexity(explanation.heatmap).gini, True),
    "pointing_game": _Metric(pointing_game, True, True),
    "mass_accuracy": _Metric(mass_accuracy, True, True),
    "rank_accuracy": _Metric(rank_accuracy, True, True),
    "iou": _Metric(iou_at, True, True),
}
"""The metrics of a comparison by name."""


class Interval(NamedTuple):
    """A mean over images, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        values: by the name of an explainer or baseline, and of a metric: (B,), NaN where it is not defined.
        confidence: of the intervals, such as 0.95.
        seed: of the bootstrap.
    """

    values: Mapping[str, Mapping[str, Tensor]]
    confidence: float = 0.95
    seed: int = 0
    _intervals: dict[tuple[str, str], Interval] = field(default_factory=dict, init=False, repr=False)

    def interval(self, name: str, metric: str) -> Interval:
        """The mean of a metric over the images where it is defined, with a percentile bootstrap interval.

        Raises:
            ImportError: SciPy is not installed.
        """
        if (name, metric) not in self._intervals:
            self._intervals[name, metric] = self._bootstrap(self.values[name][metric])
        return self._intervals[name, metric]

    def best(self, metric: str) -> list[str]:
        """The explainers and baselines with the best mean of a metric; none where it is not defined."""
        means = {name: self.interval(name, metric).mean for name in self.values}
        known = [mean for mean in means.values() if mean == mean]
        if not known:
            return []
        best = max(known) if METRICS[metric].higher_is_better else min(known)
        return [name for name, mean in means.items() if mean == best]

    def _bootstrap(self, results: Tensor) -> Interval:
        values = results[results.isfinite()].cpu().numpy()
        if len(values) < 2:
            mean = float(values.mean()) if len(values) else float("nan")
            return Interval(mean, float("nan"), float("nan"))
        try:
            from scipy.stats import bootstrap
        except ImportError as error:
            raise ImportError(
                "confidence intervals are SciPy's, which is not installed; run pip install 'gradcam-fast[metrics]'"
            ) from error
        found = bootstrap(
            (values,),
            _mean,
            confidence_level=self.confidence,
            method="percentile",
            n_resamples=_RESAMPLES,
            batch=max(1, _NUMBERS_AT_ONCE // len(values)),
            rng=self.seed,
        ).confidence_interval
        return Interval(float(values.mean()), float(found.low), float(found.high))

    def to_pandas(self) -> DataFrame:
        """A row for each explainer and baseline; columns (metric, "mean" | "low" | "high")."""
        import pandas

        rows = {
            name: {
                (metric, part): value
                for metric in columns
                for part, value in zip(Interval._fields, self.interval(name, metric), strict=True)
            }
            for name, columns in self.values.items()
        }
        return pandas.DataFrame.from_dict(rows, orient="index")

    def to_markdown(self) -> str:
        """The table as Markdown: means with their intervals, an arrow for the better direction, the best mean bold."""
        columns = list(next(iter(self.values.values())))
        best = {metric: self.best(metric) for metric in columns}
        arrows = ["↑" if METRICS[metric].higher_is_better else "↓" for metric in columns]
        heads = [f"{metric} {arrow}" for metric, arrow in zip(columns, arrows, strict=True)]
        lines = [["", *heads], ["---"] * (len(columns) + 1)]
        for name in self.values:
            lines.append([name, *(_cell(self.interval(name, metric), name in best[metric]) for metric in columns)])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def figure(self) -> Figure:
        """A chart for each metric: means as points, intervals as bars, baselines in grey.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        columns = list(next(iter(self.values.values())))
        # The baselines are grey: what a method has to beat.
        colours = ["0.55" if name in BASELINE_MAPS else "tab:blue" for name in self.values]
        figure = Figure(
            figsize=(7, 0.9 * len(columns) + 0.25 * len(self.values) * len(columns)),
            layout=ConstrainedLayoutEngine(h_pad=0.12),
        )
        axes = figure.subplots(len(columns), squeeze=False)[:, 0]
        for axis, metric in zip(axes, columns, strict=True):
            for place, name in enumerate(self.values):
                mean, low, high = self.interval(name, metric)
                axis.plot([low, high], [place, place], color=colours[place], linewidth=3, alpha=0.4)
                axis.plot([mean], [place], "o", color=colours[place])
            axis.set_yticks(range(len(self.values)), list(self.values))
            axis.invert_yaxis()
            axis.set_title(
                f"{metric} ({'higher' if METRICS[metric].higher_is_better else 'lower'} is better)", loc="left"
            )
        return figure


def compare(
    explainers: Mapping[str, Explainer],
    images: Tensor,
    target: Target = None,
    *,
    metrics: Sequence[str] = ("insertion", "deletion", "confidence_drop", "confidence_increase", "gini"),
    objects: Objects | None = None,
    baselines: Sequence[str] = BASELINE_MAPS,
    batch_size: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> Comparison:
    """Compare explainers of one model on the same images and classes, beside heatmaps that know nothing of the model.

    Args:
        explainers: by name; all of one model.
        images: (B,C,H,W).
        target: classes, one or (B,); None takes each image's highest logit.
        metrics: names in :data:`METRICS`; those of localisation need ``objects``.
        objects: as for :func:`pointing_game`.
        baselines: names in :data:`BASELINE_MAPS`.
        batch_size: the most images that the model takes at once; None takes 4 on a CPU, and 32 elsewhere.
        confidence: of the bootstrap intervals.
        seed: of these, and of the random heatmaps.
        numbers: of the images among all that are compared, if these are some of them: the random heatmap of an image
            depends on its number.

    Returns:
        Comparison: as pandas, Markdown or a figure.

    Raises:
        TypeError, ValueError: an argument that cannot work.
        ImportError: SciPy is not installed.

    Example:
        >>> import torch, gradcam_fast
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 5))
        >>> explainers = {"gradcam": gradcam_fast.Explainer(model)}
        >>> result = gradcam_fast.metrics.compare(
        ...     explainers, torch.rand(4, 3, 16, 16), metrics=["deletion"], baselines=["random"])
        >>> list(result.values), result.values["gradcam"]["deletion"].shape
        (['gradcam', 'random'], torch.Size([4]))
    """
    if not explainers or not isinstance(explainers, Mapping):
        raise ValueError(
            "explainers names no explainer; give a dict such as {'gradcam': gradcam_fast.Explainer(model)}"
        )
    first = next(iter(explainers.values()))
    if any(explainer.model is not first.model for explainer in explainers.values()):
        raise ValueError("the explainers have different models; compare the explainers of one model")
    for word, given, known in (("metrics", metrics, METRICS), ("baselines", baselines, BASELINE_MAPS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{word} has {unknown[0]!r}, which is unknown; use some of {', '.join(known)}")
    if both := [name for name in baselines if name in explainers]:
        raise ValueError(f"an explainer and a baseline are both named {both[0]!r}; rename the explainer")
    if objects is None and (needy := [name for name in metrics if METRICS[name].needs_objects]):
        raise ValueError(f"{needy[0]} compares with the objects in the images; give objects=, boxes or masks")
    if numbers is not None and len(numbers) != len(images):
        raise ValueError(f"numbers has {len(numbers)} entries for {len(images)} images; give one for each image")
    rows: dict[str, dict[str, list[Tensor]]] = {
        name: {metric: [] for metric in metrics} for name in (*explainers, *baselines)
    }
    places = range(len(images)) if numbers is None else numbers
    at_once = images_at_once(batch_size, images.device)
    for start in range(0, len(images), at_once):
        part = slice(start, start + at_once)
        batch = images[part]
        classes = target[part] if isinstance(target, (torch.Tensor, list, tuple)) else target
        there = None if objects is None else objects[part]
        explanations: dict[str, Explanation] = {}
        for name, explainer in explainers.items():
            explanations[name] = explainer(batch, classes)
            classes = explanations[name].target
        made = explanations[next(iter(explainers))]
        for name in baselines:
            heatmap = _baseline_map(name, first, batch, made.target, seed, places[part])
            explanations[name] = replace(made, heatmap=heatmap)
        for name, explanation in explanations.items():
            for metric in metrics:
                compute = METRICS[metric].compute
                rows[name][metric].append(
                    compute(explanation.heatmap, there)
                    if METRICS[metric].needs_objects
                    else compute(explainers.get(name, first), batch, explanation, batch_size=batch_size)
                )
    return Comparison(
        {name: {metric: torch.cat(parts) for metric, parts in row.items()} for name, row in rows.items()},
        confidence,
        seed,
    )


def _baseline_map(
    name: str, explainer: Explainer, images: Tensor, target: Target, seed: int, numbers: Sequence[int]
) -> Tensor:
    if name == "random":
        return random_map(images, seed=seed, numbers=numbers)
    if name == "centre":
        return centre_map(images)
    return edge_map(images) if name == "edges" else saliency_map(explainer, images, target)


def _mean(values: Any, axis: int) -> Any:
    return values.mean(axis)


def _cell(interval: Interval, is_best: bool) -> str:
    if interval.mean != interval.mean:
        return "-"
    mean = f"**{interval.mean:.3f}**" if is_best else f"{interval.mean:.3f}"
    return mean if interval.low != interval.low else f"{mean} ({interval.low:.3f} to {interval.high:.3f})"
