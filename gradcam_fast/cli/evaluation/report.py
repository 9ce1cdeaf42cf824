"""The report of an evaluation: a page to read, and its tables and chart as files."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...metrics import BASELINE_MAPS, METRICS
from ...probabilities import percent
from ...visual import figures
from ..console import shorten
from ..output_files import write_whole
from .cases import draw_cases
from .plan import METRICS_OF_BOXES
from .words import BASELINE_WORDS, METRIC_WORDS

if TYPE_CHECKING:
    from ...metrics import Comparison
    from ...pipeline.networks import Network
    from .plan import Plan
    from .run import EvaluationSettings
    from .value_table import ValueTable

__all__ = ["write_report"]

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(network: Network, table: ValueTable, out: Path, plan: Plan, settings: EvaluationSettings) -> None:
    """Write ``index.html`` with its pictures, ``summary.csv``, ``summary.md`` and ``chart.png`` to ``out``.

    Raises:
        ImportError: Jinja or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("the report is written with Jinja, which is not installed; run pip install jinja2") from error
    comparison = table.comparison()
    write_whole(out / "summary.csv", _csv(comparison, plan))
    write_whole(out / "summary.md", f"{comparison.to_markdown()}\n".encode())
    figures.save(comparison.figure(), out / "chart.png")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "percent": _percent, "short": shorten}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=__version__,
        network=network.title,
        count=len(table.photos),
        target=None if plan.target is None else shorten(network.class_names[plan.target]),
        boxes=None if plan.boxes is None else plan.boxes.path.name,
        with_boxes=sum(Path(photo) in plan.boxes for photo in table.photos) if plan.boxes else 0,
        metrics={name: (METRICS[name].higher_is_better, METRIC_WORDS[name]) for name in plan.metrics},
        metrics_of_boxes=[name for name in plan.metrics if name in METRICS_OF_BOXES],
        baselines={name: BASELINE_WORDS[name] for name in BASELINE_MAPS},
        rows=_rows(comparison, plan),
        confidence=comparison.confidence,
        first=plan.metrics[0],
        cases=list(draw_cases(network, table, out, plan, settings)),
    )
    # Paths that are no UTF-8 have surrogates.
    write_whole(out / "index.html", page.encode("utf-8", "backslashreplace"))


def _rows(comparison: Comparison, plan: Plan) -> list[dict[str, Any]]:
    """The rows of the page's table: their cells have an interval, and whether it is the best of the column."""
    best = {metric: comparison.best(metric) for metric in plan.metrics}
    return [
        {
            "name": row,
            "is_baseline": row in BASELINE_MAPS,
            "cells": [(comparison.interval(row, metric), row in best[metric]) for metric in plan.metrics],
        }
        for row in plan.rows
    ]


def _csv(comparison: Comparison, plan: Plan) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["row", "metric", "mean", "low", "high", "photos", "higher_is_better"])
    for row in plan.rows:
        for metric in plan.metrics:
            counted = int(comparison.values[row][metric].isfinite().sum())
            interval = comparison.interval(row, metric)
            writer.writerow([row, metric, *interval, counted, METRICS[metric].higher_is_better])
    return text.getvalue().encode()


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _percent(probability: float) -> str:
    return "" if math.isnan(probability) else percent(probability)
