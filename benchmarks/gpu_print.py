"""What gpu.py measured, as text for a terminal: the machine, the tables, the goals last. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gpu_report


def text(results: Mapping[str, Any], trial: bool = False) -> str:
    """All of it; see :func:`gpu_report.tables` for ``trial`` and what is raised."""
    found = {True: "met", False: "MISSED", None: "not all measured"}
    goals = [[what, asked, seen, found[met]] for what, asked, seen, met in gpu_report.reach(results, trial)]
    tables = [*gpu_report.tables(results, trial), ("Goals (medians)", ["what", "asked", "seen", ""], goals)]
    return "\n\n".join(["\n".join(heading(results)), *(aligned(*table) for table in tables)])


def heading(results: Mapping[str, Any]) -> list[str]:
    """On what, with what, when."""
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


def _speed(copy: Mapping[str, float], which: str) -> str:
    return f"{copy[which]:.0f} GB/s" if which in copy else "not measured"
