"""The tables and the goals read off what gpu.py wrote. Pure Python: knows no torch, and measures nothing.

What gpu.py writes (every time and size has its unit in its name; "least" and "median" are of interleaved rounds):

    schema        1
    device        "cuda"; anything else is a trial of the program, and no table is made of it
    date, seconds_taken, commit, dirty (null: not known)
    machine       gpu, capability, multiprocessors, memory_bytes, cache_bytes, driver, cpu, cpu_cores, system
    versions      python, torch, cuda, cudnn, torchvision, gradcam_fast, backend [lines], ...
    settings      tf32_in_convolutions, tf32_in_matrix_products, cudnn_benchmark
    copy          bytes_per_copy, first_gb_per_s, last_gb_per_s: bytes read plus written, before and after the rest
    op            rows of batch, channels, rows, columns, side, dtype, bytes (A, G and map once), input_sets,
                  runs {fused, eager, compiled}: apart (from the float64 reference, on [0,1]; null: no number),
                  rounds, {host,device}_us_{least,median}, at batch 1 also in_cache_us_{least,median}
    explanations  rows of network, torchvision, dtype, batch, pixels, runs {inference; inference, graph; explainer;
                  explainer, graph; recipe; torchcam; captum; pytorch-grad-cam}: images_timed (fewer than batch where it
                  goes one by one), rounds, {queued,alone}_ms_{least,median} of these images, first_calls_peak_bytes,
                  later_call_peak_bytes, warning; and how far from explainer: apart, images_compared, images_apart

A row, or a run in it, that was not measured says why in "missing". A ratio is of medians.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gpu_goals
from gpu_goals import GRAPH, GRAPHED_INFERENCE, INFERENCE, bandwidth, op_share, ratio, time_of
from gpu_reservations import OURS, SHORT, Results, Table, differing, not_measured, warned

OPS = ("fused", "eager", "compiled")
WAYS = (*OURS, "recipe", "torchcam", "captum", "pytorch-grad-cam")
NOTHING = "-"


class NotMeasuredOnAGPU(ValueError):
    """What was read are the numbers of a trial, which stand for nothing."""


def tables(results: Results, trial: bool = False) -> list[Table]:
    """Title, header and rows, in strings: the op, the explanations, what differs, what is not measured.

    Raises:
        NotMeasuredOnAGPU: the results are of a trial, and ``trial`` does not say that this is known.
    """
    _only_from_a_gpu(results, trial)
    makers = (_op, _explanations, _alone, _memory, differing, warned, not_measured)
    made = [make(results) for make in makers]
    return [
        (f"TRIAL, NO GPU NUMBERS: {title}" if trial else title, header, rows) for title, header, rows in made if rows
    ]


def reach(results: Results, trial: bool = False) -> list[tuple[str, str, str, bool | None]]:
    """What was to be reached, what was asked, what was seen, whether it is met (None: not all of it was measured).

    Raises:
        NotMeasuredOnAGPU: as in :func:`tables`; of a trial nothing is met or missed.
    """
    _only_from_a_gpu(results, trial)
    lines = gpu_goals.reach(results)
    return [(what, asked, seen, None) for what, asked, seen, _ in lines] if trial else lines


def _only_from_a_gpu(results: Results, trial: bool) -> None:
    if results["device"] != "cuda" and not trial:
        raise NotMeasuredOnAGPU(f"these are no numbers of a GPU ({results['device']}); run benchmarks/gpu.py on one")


def _op(results: Results) -> Table:
    title = "The op: us on the device (us per call by the host's clock), inputs out of the cache; then in the cache"
    header = ["A, G", "type", "B", "MB", *OPS, "GB/s", "of copy", "fused in cache"]
    rows = []
    for row in sorted(results["op"], key=lambda row: (row["dtype"] != "float32", -row["channels"], row["batch"])):
        runs = row["runs"]
        device = [time_of(runs, name, "device_us") for name in OPS]
        host = [time_of(runs, name, "host_us") for name in OPS]
        cells = [
            NOTHING if None in pair else "{} ({})".format(*map(_three, pair)) for pair in zip(device, host, strict=True)
        ]
        speed, share = bandwidth(row), op_share(results, row)
        rows.append(
            [
                f"{row['channels']}x{row['rows']}x{row['columns']}",
                SHORT[row["dtype"]],
                str(row["batch"]),
                _three(row["bytes"] / 1e6),
                *cells,
                NOTHING if speed is None else f"{speed:.0f}",
                NOTHING if share is None else f"{share:.0%}",
                _three(time_of(runs, "fused", "in_cache_us")),
            ]
        )
    return title, header, rows


def _explanations(results: Results) -> Table:
    title = "Explanations: ms of inference (in a graph), and times that [times a graphed inference]; calls in a queue"
    header = ["network", "type", "B", INFERENCE, *WAYS]
    rows = []
    for row in results["explanations"]:
        runs = row["runs"]
        plain, graph = (time_of(runs, name, "queued_ms") for name in (INFERENCE, GRAPHED_INFERENCE))
        cells = [_times(row, way) for way in WAYS]
        rows.append([*_where(row), NOTHING if plain is None else f"{_three(plain)} ({_three(graph)})", *cells])
    return f"{title}; * its maps are not ours; ~ timed on some of the images", header, rows


def _times(row: Mapping[str, Any], way: str) -> str:
    times, of_graph = ratio(row, way, INFERENCE), ratio(row, way, GRAPHED_INFERENCE)
    if times is None:
        return NOTHING
    run = row["runs"][way]
    marks = "*" * bool(run.get("images_apart")) + "~" * (run["images_timed"] < row["batch"])
    return f"{times:.2f}{marks}" + (f" [{of_graph:.2f}]" if way == GRAPH and of_graph is not None else "")


def _alone(results: Results) -> Table:
    title = "One image alone, from an idle device to the finished heatmap: ms"
    ways = (INFERENCE, GRAPHED_INFERENCE, *WAYS)
    rows = [
        [row["network"], SHORT[row["dtype"]], *(_three(time_of(row["runs"], way, "alone_ms")) for way in ways)]
        for row in results["explanations"]
        if row["batch"] == 1
    ]
    return title, ["network", "type", *ways], rows


def _memory(results: Results) -> Table:
    title = "Most MiB allocated above what was there before a call, largest batch; with a graph, while it is made"
    header = ["network", "type", "B", INFERENCE, *WAYS]
    rows = []
    largest = max((row["batch"] for row in results["explanations"]), default=0)
    for row in (row for row in results["explanations"] if row["batch"] == largest):
        cells = []
        for name in (INFERENCE, *WAYS):
            run = row["runs"].get(name, {})
            taken = run.get("first_calls_peak_bytes" if "graph" in name else "later_call_peak_bytes")
            cells.append(NOTHING if taken is None else f"{taken / 2**20:.0f}")
        rows.append([*_where(row), *cells])
    return title, header, rows


def _where(row: Mapping[str, Any]) -> list[str]:
    return [row["network"], SHORT[row["dtype"]], str(row["batch"])]


def _three(number: float | None) -> str:
    """Three digits, and no exponent."""
    if number is None:
        return NOTHING
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"
