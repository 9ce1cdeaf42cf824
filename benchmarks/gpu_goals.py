"""The speed goals on a GPU, and whether results meet them. The results are in the format that gpu_report.py describes.

Pure Python. Every ratio is of medians.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

INFERENCE, GRAPHED_INFERENCE, GRAPH = "inference", "inference, graph", "explainer, graph"
COMPILED_INFERENCE, COMPILED = "inference, compiled", "explainer, compiled"


class Goal(NamedTuple):
    """One goal, what was measured for it, and whether it is met.

    ``met`` is None where what was measured meets the goal, but not everything was measured.
    """

    name: str
    required: str
    measured: str
    met: bool | None


# Name, the rows it holds for, the contender whose time is divided, the one it is divided by, and the bound.
RATIO_GOALS: list[tuple[str, Callable[[Row], bool], str, str, str, float]] = [
    (
        "explainer with a graph / inference with a graph, B=1",
        lambda row: row["batch"] == 1,
        GRAPH,
        GRAPHED_INFERENCE,
        "<=",
        1.05,
    ),
    ("explainer with a graph / inference, B=1", lambda row: row["batch"] == 1, GRAPH, INFERENCE, "<=", 1 / 3),
    ("explainer / inference, B>=32", lambda row: row["batch"] >= 32, "explainer", INFERENCE, "<=", 1.05),
    ("pytorch-grad-cam / explainer", lambda row: True, "pytorch-grad-cam", "explainer", ">=", 10),
    ("pytorch-grad-cam / explainer with a graph", lambda row: True, "pytorch-grad-cam", GRAPH, ">=", 10),
    (
        "compiled explainer / compiled inference, where measured",
        lambda row: COMPILED in row["runs"],
        COMPILED,
        COMPILED_INFERENCE,
        "<=",
        1.05,
    ),
]
COMPARISONS = {"<=": operator.le, ">=": operator.ge}


def judge(results: Mapping[str, Any]) -> list[Goal]:
    return [*_op_goals(results), *(_ratio_goal(results["explanations"], *goal) for goal in RATIO_GOALS)]


def median_time(runs: Mapping[str, Row], name: str, kind: str) -> float | None:
    """The median time of a contender; ``kind`` is "device_us", "queued_ms" ... None if it was not measured."""
    return runs.get(name, {}).get(f"{kind}_median")


def time_ratio(row: Row, numerator: str, denominator: str) -> float | None:
    """The ratio of two contenders' times of queued calls, scaled up to all images where only some were timed."""
    times = []
    for name in (numerator, denominator):
        time = median_time(row["runs"], name, "queued_ms")
        if time is None:
            return None
        times.append(time * row["batch"] / row["runs"][name]["images_timed"])
    return times[0] / times[1]


def bandwidth(row: Row) -> float | None:
    """GB/s of the fused op, each byte of A, G and map counted once."""
    time = median_time(row["runs"], "fused", "device_us")
    return None if time is None else row["bytes"] / time / 1e3


def bandwidth_share(results: Mapping[str, Any], row: Row) -> float | None:
    """The op's bandwidth as a share of the copy bandwidth that was measured first."""
    op, copy = bandwidth(row), results.get("copy", {}).get("first_gb_per_s")
    return None if op is None or copy is None else op / copy


def _op_goals(results: Mapping[str, Any]) -> list[Goal]:
    def row(batch: int) -> Row:
        wanted = {"batch": batch, "channels": 2048, "rows": 7, "dtype": "float32"}
        return next((row for row in results["op"] if wanted.items() <= row.items()), {"runs": {}})

    share = bandwidth_share(results, row(256))
    device, host = (median_time(row(1)["runs"], "fused", kind) for kind in ("device_us", "host_us"))
    not_measured = "not measured"
    return [
        Goal(
            "op, B=256, 2048x7x7, float32",
            ">= 80 % of copy",
            not_measured if share is None else f"{share:.1%}",
            None if share is None else share >= 0.8,
        ),
        Goal(
            "op, B=1, 2048x7x7, float32, on the device",
            "<= 8 us",
            not_measured if device is None else f"{device:.1f} us ({host:.1f} us per call by the host's clock)",
            None if device is None else device <= 8,
        ),
    ]


def _ratio_goal(
    rows: Sequence[Row],
    name: str,
    applies: Callable[[Row], bool],
    numerator: str,
    denominator: str,
    sign: str,
    bound: float,
) -> Goal:
    rows = [row for row in rows if applies(row)]
    ratios = {
        f"{row['network']} {row['dtype']} B={row['batch']}": time_ratio(row, numerator, denominator) for row in rows
    }
    measured = {case: ratio for case, ratio in ratios.items() if ratio is not None}
    good = [case for case, ratio in measured.items() if COMPARISONS[sign](ratio, bound)]
    required = f"{sign} {bound:.2f}"
    if not measured:
        return Goal(name, required, f"not measured (0 of {len(rows)})", None)
    worst = (max if sign == "<=" else min)(measured, key=measured.__getitem__)
    text = f"{min(measured.values()):.2f} to {max(measured.values()):.2f}, worst at {worst}; {len(good)} of {len(rows)}"
    missing = len(rows) - len(measured)
    met = False if len(good) < len(measured) else None if missing else True
    return Goal(name, required, text + (f", {missing} not measured" if missing else ""), met)
