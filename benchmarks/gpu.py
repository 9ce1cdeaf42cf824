"""What explanations cost on a GPU, in less than eight minutes: copies, the op, whole explanations.

    python benchmarks/gpu.py [--out FILE.json] [--minutes 7]

Needs torch, torchvision and gradcam_fast; whoever else explains is measured where it is installed. Prints tables, and
writes JSON, which gpu_report.py describes, after every row: what is interrupted is not lost. Exits with 1 if the op's
result was wrong, with 2 if there is no GPU. Knows the order of work only.
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
    """Which rows, and how many seconds at most: a row's rounds, if there is time, and all of torch.compile's work."""

    op: list[gpu_op.Case]
    explanations: list[gpu_explanations.Case]
    pixels: int
    op_rounds: float
    explanation_rounds: float
    compiling: float


FULL = Plan(gpu_op.PLAN, gpu_explanations.PLAN, 224, op_rounds=2.0, explanation_rounds=8.0, compiling=75.0)
TRIAL = Plan(gpu_op.TRIAL, gpu_explanations.TRIAL, 64, op_rounds=0.1, explanation_rounds=0.1, compiling=0.1)


def main() -> int:
    asked = _arguments()
    if asked.trial != "cpu" and not torch.cuda.is_available():
        print(
            f"gpu.py measures a GPU, and torch {torch.__version__} finds none: run it where there is one, or try the "
            "program itself with --trial cpu",
            file=sys.stderr,
        )
        return 2
    begun, budget = time.monotonic(), Budget(asked.minutes * 60)
    device: Device = Host() if asked.trial == "cpu" else Cuda()
    plan = TRIAL if asked.trial else FULL
    results = _before_measuring(device, plan, asked)

    def save() -> None:
        results["seconds_taken"] = round(time.monotonic() - begun, 1)
        if asked.out is not None:
            asked.out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    _measure(device, plan, results, budget, save)
    save()
    print(gpu_print.text(results, trial=asked.trial is not None))
    return 1 if any(map(gpu_op.is_wrong, results["op"])) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the numbers go")
    parser.add_argument("--minutes", type=float, default=7.0, help="what does not begin in this time is not measured")
    parser.add_argument(
        "--commit", help="of these sources, where git cannot tell; with -dirty behind it if files differ"
    )
    parser.add_argument(
        "--trial", choices=["cpu", "cuda"], help="try the program on tiny inputs; what it prints stands for nothing"
    )
    return parser.parse_args()


def _before_measuring(device: Device, plan: Plan, asked: argparse.Namespace) -> dict[str, Any]:
    """All that is planned, nothing of it measured yet."""
    return {
        "schema": 1,
        "device": f"{asked.trial}, trial, no GPU numbers" if asked.trial else "cuda",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **gpu_machine.commit(asked.commit),
        "machine": gpu_machine.machine(device),
        "versions": gpu_machine.versions(),
        "settings": gpu_machine.settings(),
        "copy": {},
        "op": gpu_op.planned(plan.op),
        "explanations": gpu_explanations.planned(plan.explanations, plan.pixels),
    }


def _measure(device: Device, plan: Plan, results: dict[str, Any], budget: Budget, save: Callable[[], None]) -> None:
    size, speed = copy_bytes_per_second(device)
    results["copy"] = {"bytes_per_copy": size, "first_gb_per_s": speed / 1e9}
    benchmark = gpu_op.OpBenchmark(device, plan.compiling)
    for number, row in enumerate(results["op"]):
        share = budget.share(2 * (len(results["op"]) - number), plan.op_rounds)
        _guarded(row, budget, save, functools.partial(benchmark.measure, row, share, budget))
    planned = [] if budget.over() else results["explanations"]
    left = len(planned)
    for model, rows in gpu_explanations.networks(device, planned):
        if budget.over():
            break
        for row in rows:
            share = budget.share(left, plan.explanation_rounds)
            measure = functools.partial(gpu_explanations.measure, device, model, row, share, budget)
            _guarded(row, budget, save, measure)
            left -= 1
    if not budget.over():
        results["copy"]["last_gb_per_s"] = copy_bytes_per_second(device)[1] / 1e9


def _guarded(row: dict[str, Any], budget: Budget, save: Callable[[], None], measure: Callable[[], None]) -> None:
    """Nothing that one row meets ends the program; the row then says what it was."""
    if budget.over():
        return
    try:
        measure()
    except Exception as error:
        row["missing"] = gpu_machine.reason(error)
    save()
    what = row.get("network") or f"{row['channels']}x{row['rows']}x{row['columns']}"
    print(f"{what} {row['dtype']} B={row['batch']}: {budget.left():.0f} s left", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
