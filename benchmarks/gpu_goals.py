"""What the GPU is asked for, in numbers, and the ratios by which it is judged; on what gpu_report.py describes.

Pure Python: knows neither tables nor clocks. Every ratio is of medians.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Line = tuple[str, str, str, bool | None]
Row = Mapping[str, Any]

INFERENCE, GRAPHED_INFERENCE, GRAPH = "inference", "inference, graph", "explainer, graph"
# Over which rows, whose time, by whose, and what is asked of the ratio.
RATIOS: list[tuple[str, Callable[[Row], bool], str, str, str, float]] = [
    ("with a graph, B=1, by graphed inference", lambda row: row["batch"] == 1, GRAPH, GRAPHED_INFERENCE, "<=", 1.05),
    ("with a graph, B=1, by inference", lambda row: row["batch"] == 1, GRAPH, INFERENCE, "<=", 1 / 3),
    ("without, B>=32, by inference", lambda row: row["batch"] >= 32, "explainer", INFERENCE, "<=", 1.05),
    ("pytorch-grad-cam by ours", lambda row: True, "pytorch-grad-cam", "explainer", ">=", 10),
    ("pytorch-grad-cam by ours with a graph", lambda row: True, "pytorch-grad-cam", GRAPH, ">=", 10),
]
HOLDS = {"<=": operator.le, ">=": operator.ge}


def reach(results: Mapping[str, Any]) -> list[Line]:
    """What, asked, seen, met; None where nothing speaks against it, but not all of it was measured."""
    return [*_op(results), *(_ratios(results["explanations"], *asked) for asked in RATIOS)]


def time_of(runs: Mapping[str, Row], name: str, which: str) -> float | None:
    """The median of "device_us", "queued_ms" ..., or None."""
    return runs.get(name, {}).get(f"{which}_median")


def ratio(row: Row, above: str, below: str) -> float | None:
    """Of queued calls; the time of one that was given a part of the images is scaled up to all of them."""
    times = []
    for name in (above, below):
        taken = time_of(row["runs"], name, "queued_ms")
        if taken is None:
            return None
        times.append(taken * row["batch"] / row["runs"][name]["images_timed"])
    return times[0] / times[1]


def bandwidth(row: Row) -> float | None:
    """GB/s of the fused op, each byte of A, G and map counted once."""
    taken = time_of(row["runs"], "fused", "device_us")
    return None if taken is None else row["bytes"] / taken / 1e3


def op_share(results: Mapping[str, Any], row: Row) -> float | None:
    """Of the copy bandwidth measured at the beginning."""
    speed, copies = bandwidth(row), results.get("copy", {}).get("first_gb_per_s")
    return None if speed is None or copies is None else speed / copies


def _op(results: Mapping[str, Any]) -> list[Line]:
    def row(batch: int) -> Row:
        asked = {"batch": batch, "channels": 2048, "rows": 7, "dtype": "float32"}
        return next((row for row in results["op"] if asked.items() <= row.items()), {"runs": {}})

    share = op_share(results, row(256))
    device, host = (time_of(row(1)["runs"], "fused", which) for which in ("device_us", "host_us"))
    unseen = "not measured"
    return [
        (
            "op, B=256, 2048x7x7, float32",
            ">= 80 % of copy",
            unseen if share is None else f"{share:.1%}",
            _at_least(share),
        ),
        (
            "op, B=1, 2048x7x7, float32, on the device",
            "<= 8 us",
            unseen if device is None else f"{device:.1f} us ({host:.1f} us per call by the host's clock)",
            None if device is None else device <= 8,
        ),
    ]


def _at_least(share: float | None) -> bool | None:
    return None if share is None else share >= 0.8


def _ratios(
    rows: Sequence[Row], what: str, chosen: Callable[[Row], bool], above: str, below: str, sign: str, bound: float
) -> Line:
    asked = [row for row in rows if chosen(row)]
    seen = {f"{row['network']} {row['dtype']} B={row['batch']}": ratio(row, above, below) for row in asked}
    measured = {where: found for where, found in seen.items() if found is not None}
    good = [where for where, found in measured.items() if HOLDS[sign](found, bound)]
    if not measured:
        return what, f"{sign} {bound:.2f}", f"not measured (0 of {len(asked)})", None
    worst = (max if sign == "<=" else min)(measured, key=measured.__getitem__)
    told = (
        f"{min(measured.values()):.2f} to {max(measured.values()):.2f}, worst at {worst}; {len(good)} of {len(asked)}"
    )
    left = len(asked) - len(measured)
    met = False if len(good) < len(measured) else None if left else True
    return what, f"{sign} {bound:.2f}", told + (f", {left} not measured" if left else ""), met
