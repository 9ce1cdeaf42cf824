"""The caveats to the tables of gpu_report.py: maps that differ, warnings, and what was not measured. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu_goals import COMPILED, GRAPH

Results = Mapping[str, Any]
# Title, header, rows.
Table = tuple[str, list[str], list[list[str]]]

OURS = ("explainer", GRAPH, COMPILED)
KINDS = ("op", "explanations")
SHORT = {"float32": "f32", "bfloat16": "bf16"}


def differing_maps(results: Results) -> Table:
    """One line per contender and dtype whose maps differ from ours in any row."""
    groups: dict[tuple[str, str], list[tuple[float, Mapping[str, Any]]]] = {}
    for row, name, run in _runs(results):
        if run.get("images_differing"):
            difference = math.inf if run["max_difference"] is None else run["max_difference"]
            groups.setdefault((name, SHORT[row["dtype"]]), []).append((difference, row))
    rows = [
        [
            *group,
            str(len(members)),
            _abbreviate([_label(row) for _, row in members]),
            f"{max(difference for difference, _ in members):.0e}",
        ]
        for group, members in groups.items()
    ]
    header = ["contender", "type", "rows", "where", "largest difference"]
    return "Maps that differ from ours, on [0,1] (inf: one is NaN)", header, rows


def explainer_warnings(results: Results) -> Table:
    ours = [(name, run["warning"], row) for row, name, run in _runs(results) if name in OURS and "warning" in run]
    return "Warnings of gradcam_fast", ["contender", "warning", "rows", "where"], _grouped(ours)


def not_measured(results: Results) -> Table:
    rows = [(kind, row["missing"], row) for kind in KINDS for row in results[kind] if "missing" in row]
    runs = [(name, run["missing"], row) for row, name, run in _runs(results) if "missing" in run]
    return "Not measured", ["contender", "why", "rows", "where"], _grouped(rows + runs)


def _runs(results: Results) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    for row in (row for kind in KINDS for row in results[kind]):
        for name, run in row["runs"].items():
            yield row, name, run


def _grouped(remarks: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[list[str]]:
    """One line per contender and remark, with all rows it applies to."""
    groups: dict[tuple[str, str], list[str]] = {}
    for contender, remark, row in remarks:
        groups.setdefault((contender, remark), []).append(_label(row))
    return [[*group, str(len(labels)), _abbreviate(labels)] for group, labels in groups.items()]


def _label(row: Mapping[str, Any]) -> str:
    return f"{row.get('torchvision') or row['channels']} {SHORT[row['dtype']]} B={row['batch']}"


def _abbreviate(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 3 else f"{', '.join(labels[:2])} ... {labels[-1]}"
