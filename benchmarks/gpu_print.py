"""The results of gpu.py as text for a terminal: the environment, the tables, the goals last. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gpu_report


def text(results: Mapping[str, Any], trial: bool = False) -> str:
    """The whole text; see :func:`gpu_report.tables` for ``trial`` and the errors."""
    words = {True: "met", False: "MISSED", None: "not all measured"}
    goals = [[goal.name, goal.required, goal.measured, words[goal.met]] for goal in gpu_report.goals(results, trial)]
    tables = [*gpu_report.tables(results, trial), ("Goals (medians)", ["goal", "required", "measured", ""], goals)]
    return "\n\n".join(["\n".join(heading(results)), *(aligned(*table) for table in tables)])


def heading(results: Mapping[str, Any]) -> list[str]:
    """Machine, versions, commit, settings and copy bandwidth."""
    machine, versions, copy = results["machine"], results["versions"], results["copy"]
    changes = {True: ", with changes", False: "", None: ", changes not known"}[results["dirty"]]
    tf32 = (f"{name[8:]} {on}" for name, on in results["settings"].items() if name.startswith("tf32_in_"))
    gpu = f"{machine.get('gpu', 'no GPU')}, driver {machine.get('driver')}"
    return [
        f"{gpu}; {machine['cpu']}, {machine['cpu_cores']} cores",
        f"torch {versions['torch']}, torchvision {versions['torchvision']}, CUDA {versions['cuda']}; {results['date']}",
        f"gradcam_fast {versions['gradcam_fast']}, commit {results['commit']}{changes}",
        *versions["backend"],
        f"TF32: {', '.join(tf32)}",
        f"copies on the device: {_speed(copy, 'first_gb_per_s')}, at the end {_speed(copy, 'last_gb_per_s')}",
    ]


def aligned(title: str, header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _speed(copy: Mapping[str, float], entry: str) -> str:
    return f"{copy[entry]:.0f} GB/s" if entry in copy else "not measured"
