"""Measures a GPU in less than eight minutes: copies, the op, whole explanations.

    python benchmarks/gpu.py [--out FILE.json] [--minutes 7]

Needs torch, torchvision and gradcam_fast; other libraries are measured where they are installed. Prints tables. Writes
the JSON that gpu_report.py describes after every row, so that an interrupted run keeps its rows. Exits with 1 if the
op's result was wrong, with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gpu_explanations
import gpu_machine
import gpu_op
import gpu_print
import torch
from gpu_device import Cuda, Device, Host, copy_bytes_per_second
from gpu_timing import Budget


class Plan(NamedTuple):
    """Which rows to measure, and the most seconds for one row's rounds (op, explanations) and for all compiling."""

    op: list[gpu_op.Case]
    explanations: list[gpu_explanations.Case]
    pixels: int
    seconds_per_op: float
    seconds_per_explanation: float
    seconds_compiling: float


FULL = Plan(
    gpu_op.PLAN, gpu_explanations.PLAN, 224, seconds_per_op=2.0, seconds_per_explanation=8.0, seconds_compiling=75.0
)
TRIAL = Plan(
    gpu_op.TRIAL, gpu_explanations.TRIAL, 64, seconds_per_op=0.1, seconds_per_explanation=0.1, seconds_compiling=0.1
)


def main() -> int:
    options = _parse_options()
    if options.trial != "cpu" and not torch.cuda.is_available():
        print(
            f"gpu.py measures a GPU, and torch {torch.__version__} finds none; run it where there is one, or try "
            "the program itself with --trial cpu",
            file=sys.stderr,
        )
        return 2
    start, budget = time.monotonic(), Budget(options.minutes * 60)
    device: Device = Host() if options.trial == "cpu" else Cuda()
    plan = TRIAL if options.trial else FULL
    results = _unmeasured_results(device, plan, options)

    def save() -> None:
        results["seconds_taken"] = round(time.monotonic() - start, 1)
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    _measure(device, plan, results, budget, save)
    save()
    print(gpu_print.text(results, trial=options.trial is not None))
    return 1 if any(map(gpu_op.is_wrong, results["op"])) else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the numbers to this file")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no measurement after this time")
    parser.add_argument(
        "--commit", help="the commit of these sources, where git cannot tell; append -dirty if files differ from it"
    )
    parser.add_argument(
        "--trial", choices=["cpu", "cuda"], help="try the program on tiny inputs; its numbers mean nothing"
    )
    return parser.parse_args()


def _unmeasured_results(device: Device, plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """The results with all planned rows, none of them measured yet."""
    return {
        "schema": 2,
        "device": f"{options.trial}, trial, no GPU numbers" if options.trial else "cuda",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **gpu_machine.commit(options.commit),
        "machine": gpu_machine.machine(device),
        "versions": gpu_machine.versions(),
        "settings": gpu_machine.settings(),
        "copy": {},
        "op": gpu_op.planned_rows(plan.op),
        "explanations": gpu_explanations.planned_rows(plan.explanations, plan.pixels),
    }


def _measure(device: Device, plan: Plan, results: dict[str, Any], budget: Budget, save: Callable[[], None]) -> None:
    bytes_per_copy, speed = copy_bytes_per_second(device)
    results["copy"] = {"bytes_per_copy": bytes_per_copy, "first_gb_per_s": speed / 1e9}
    benchmark = gpu_op.OpBenchmark(device, plan.seconds_compiling)
    for number, row in enumerate(results["op"]):
        row_budget = budget.share(2 * (len(results["op"]) - number), plan.seconds_per_op)
        _measure_row(row, budget, save, functools.partial(benchmark.measure, row, row_budget, budget))
    rows_to_measure = [] if budget.expired() else results["explanations"]
    rows_left = len(rows_to_measure)
    for model, rows in gpu_explanations.networks(device, rows_to_measure):
        if budget.expired():
            break
        for row in rows:
            row_budget = budget.share(rows_left, plan.seconds_per_explanation)
            measure = functools.partial(gpu_explanations.measure, device, model, row, row_budget, budget)
            _measure_row(row, budget, save, measure)
            rows_left -= 1
    if not budget.expired():
        results["copy"]["last_gb_per_s"] = copy_bytes_per_second(device)[1] / 1e9


def _measure_row(row: dict[str, Any], budget: Budget, save: Callable[[], None], measure: Callable[[], None]) -> None:
    """Measure one row and save. An exception does not end the program; its message is stored in the row."""
    if budget.expired():
        return
    try:
        measure()
    except Exception as error:
        row["missing"] = gpu_machine.reason(error)
    save()
    measured = row.get("network") or f"{row['channels']}x{row['rows']}x{row['columns']}"
    print(f"{measured} {row['dtype']} B={row['batch']}: {budget.left():.0f} s left", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
