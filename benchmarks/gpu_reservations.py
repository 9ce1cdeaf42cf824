"""What a reader must know before believing a table of gpu_report.py: maps that differ, warnings, what was not measured.

Pure Python: knows no torch, and no numbers but these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu_goals import GRAPH

Results = Mapping[str, Any]
# Title, header, rows.
Table = tuple[str, list[str], list[list[str]]]

OURS = ("explainer", GRAPH)
KINDS = ("op", "explanations")
SHORT = {"float32": "f32", "bfloat16": "bf16"}


def differing(results: Results) -> Table:
    """One line for all rows in which the same contender differs in the same type."""
    groups: dict[tuple[str, str], list[tuple[float, Mapping[str, Any]]]] = {}
    for row, name, run in _runs(results):
        if run.get("images_apart"):
            apart = math.inf if run["apart"] is None else run["apart"]
            groups.setdefault((name, SHORT[row["dtype"]]), []).append((apart, row))
    rows = [
        [*group, str(len(found)), _some([_named(row) for _, row in found]), f"{max(apart for apart, _ in found):.0e}"]
        for group, found in groups.items()
    ]
    return "Maps that differ from ours (inf: no number)", ["who", "type", "rows", "where", "at most, on [0,1]"], rows


def warned(results: Results) -> Table:
    ours = [(name, run["warning"], row) for row, name, run in _runs(results) if name in OURS and "warning" in run]
    return "Warnings of ours", ["who", "what", "rows", "where"], _grouped(ours)


def not_measured(results: Results) -> Table:
    rows = [(kind, row["missing"], row) for kind in KINDS for row in results[kind] if "missing" in row]
    runs = [(name, run["missing"], row) for row, name, run in _runs(results) if "missing" in run]
    return "Not measured", ["who", "why", "rows", "where"], _grouped(rows + runs)


def _runs(results: Results) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    for row in (row for kind in KINDS for row in results[kind]):
        for name, run in row["runs"].items():
            yield row, name, run


def _grouped(found: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[list[str]]:
    """One line for all rows in which the same is said of the same."""
    groups: dict[tuple[str, str], list[str]] = {}
    for who, why, row in found:
        groups.setdefault((who, why), []).append(_named(row))
    return [[who, why, str(len(where)), _some(where)] for (who, why), where in groups.items()]


def _named(row: Mapping[str, Any]) -> str:
    return f"{row.get('torchvision') or row['channels']} {SHORT[row['dtype']]} B={row['batch']}"


def _some(where: Sequence[str]) -> str:
    return ", ".join(where) if len(where) <= 3 else f"{', '.join(where[:2])} ... {where[-1]}"
