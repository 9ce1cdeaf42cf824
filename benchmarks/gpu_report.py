"""Tables and goals from the results of gpu.py. Pure Python, without torch.

The JSON of gpu.py (every time and size has its unit in its name; "least" and "median" are over interleaved rounds):

    schema        2
    device        "cuda"; anything else is a trial of the program, of which no table is made
    date, seconds_taken, commit, dirty (null: unknown)
    machine       gpu, capability, multiprocessors, memory_bytes, cache_bytes, driver, cpu, cpu_cores, system
    versions      python, torch, cuda, cudnn, torchvision, gradcam_fast, backend [lines], ...
    settings      tf32_in_convolutions, tf32_in_matrix_products, cudnn_benchmark
    copy          bytes_per_copy, first_gb_per_s, last_gb_per_s: bytes read plus written, at the start and end
    op            rows of batch, channels, rows, columns, side, dtype, bytes (A, G and map once), input_sets,
                  runs {fused, eager, compiled}: max_difference (to the float64 reference, on [0,1]; null: NaN),
                  rounds, {host,device}_us_{least,median}, at batch 1 also in_cache_us_{least,median}
    explanations  rows of network, torchvision, dtype, batch, pixels, runs {inference; inference, graph; explainer;
                  explainer, graph; recipe; torchcam; captum; pytorch-grad-cam; for some rows inference, compiled and
                  explainer, compiled}: images_timed (fewer than batch for the
                  recipe), rounds, {queued,alone}_ms_{least,median} of these images, first_calls_peak_bytes,
                  later_call_peak_bytes, warning; and against explainer: max_difference, images_compared,
                  images_differing

If a row, or a run in it, was not measured, its "missing" is the reason. Ratios are of medians.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gpu_goals
from gpu_caveats import OURS, SHORT, Results, Table, differing_maps, explainer_warnings, not_measured
from gpu_goals import GRAPH, GRAPHED_INFERENCE, INFERENCE, Goal, bandwidth, bandwidth_share, median_time, time_ratio

OP_CONTENDERS = ("fused", "eager", "compiled")
EXPLAINERS = (*OURS, "recipe", "torchcam", "captum", "pytorch-grad-cam")
NOT_MEASURED = "-"


class NotMeasuredOnAGPU(ValueError):
    """The results are those of a trial, whose numbers mean nothing."""


def tables(results: Results, trial: bool = False) -> list[Table]:
    """Title, header and rows of each table, as strings: op, explanations, memory, then the caveats.

    Raises:
        NotMeasuredOnAGPU: the results are those of a trial, and ``trial`` is False.
    """
    _check_source(results, trial)
    makers = (_op, _explanations, _alone, _memory, differing_maps, explainer_warnings, not_measured)
    return [
        (f"TRIAL, NO GPU NUMBERS: {title}" if trial else title, header, rows)
        for title, header, rows in (make(results) for make in makers)
        if rows
    ]


def goals(results: Results, trial: bool = False) -> list[Goal]:
    """The goals and whether they are met; in a trial none is met or missed.

    Raises:
        NotMeasuredOnAGPU: as in :func:`tables`.
    """
    _check_source(results, trial)
    judged = gpu_goals.judge(results)
    return [goal._replace(met=None) for goal in judged] if trial else judged


def _check_source(results: Results, trial: bool) -> None:
    if results["device"] != "cuda" and not trial:
        raise NotMeasuredOnAGPU(
            f"these are no numbers of a GPU, but of {results['device']!r}; run benchmarks/gpu.py on a GPU"
        )


def _op(results: Results) -> Table:
    title = "The op: device time in us (host time per call), inputs not in the cache; last column: inputs in the cache"
    header = ["A, G", "type", "B", "MB", *OP_CONTENDERS, "GB/s", "of copy", "fused in cache"]
    rows = []
    for row in sorted(results["op"], key=lambda row: (row["dtype"] != "float32", -row["channels"], row["batch"])):
        runs = row["runs"]
        device = [median_time(runs, name, "device_us") for name in OP_CONTENDERS]
        host = [median_time(runs, name, "host_us") for name in OP_CONTENDERS]
        cells = [
            NOT_MEASURED if None in pair else "{} ({})".format(*map(_three_digits, pair))
            for pair in zip(device, host, strict=True)
        ]
        speed, share = bandwidth(row), bandwidth_share(results, row)
        rows.append(
            [
                f"{row['channels']}x{row['rows']}x{row['columns']}",
                SHORT[row["dtype"]],
                str(row["batch"]),
                _three_digits(row["bytes"] / 1e6),
                *cells,
                NOT_MEASURED if speed is None else f"{speed:.0f}",
                NOT_MEASURED if share is None else f"{share:.0%}",
                _three_digits(median_time(runs, "fused", "in_cache_us")),
            ]
        )
    return title, header, rows


def _explanations(results: Results) -> Table:
    title = "Explanations, queued calls: ms of inference (in a graph); the others / inference [/ inference in a graph]"
    header = ["network", "type", "B", INFERENCE, *EXPLAINERS]
    rows = []
    for row in results["explanations"]:
        runs = row["runs"]
        plain, graphed = (median_time(runs, name, "queued_ms") for name in (INFERENCE, GRAPHED_INFERENCE))
        cells = [_ratio_cell(row, name) for name in EXPLAINERS]
        rows.append(
            [
                *_label_cells(row),
                NOT_MEASURED if plain is None else f"{_three_digits(plain)} ({_three_digits(graphed)})",
                *cells,
            ]
        )
    return f"{title}; *: maps differ from ours; ~: timed on some of the images", header, rows


def _ratio_cell(row: Mapping[str, Any], name: str) -> str:
    ratio, ratio_to_graph = time_ratio(row, name, INFERENCE), time_ratio(row, name, GRAPHED_INFERENCE)
    if ratio is None:
        return NOT_MEASURED
    run = row["runs"][name]
    marks = "*" * bool(run.get("images_differing")) + "~" * (run["images_timed"] < row["batch"])
    return f"{ratio:.2f}{marks}" + (f" [{ratio_to_graph:.2f}]" if name == GRAPH and ratio_to_graph is not None else "")


def _alone(results: Results) -> Table:
    title = "One image alone, from an idle device to the finished heatmap: ms"
    names = (INFERENCE, GRAPHED_INFERENCE, *EXPLAINERS)
    rows = [
        [
            row["network"],
            SHORT[row["dtype"]],
            *(_three_digits(median_time(row["runs"], name, "alone_ms")) for name in names),
        ]
        for row in results["explanations"]
        if row["batch"] == 1
    ]
    return title, ["network", "type", *names], rows


def _memory(results: Results) -> Table:
    title = "Peak MiB allocated by a call, largest batch; with a graph, while it is recorded"
    header = ["network", "type", "B", INFERENCE, *EXPLAINERS]
    rows = []
    largest = max((row["batch"] for row in results["explanations"]), default=0)
    for row in (row for row in results["explanations"] if row["batch"] == largest):
        cells = []
        for name in (INFERENCE, *EXPLAINERS):
            run = row["runs"].get(name, {})
            peak = run.get("first_calls_peak_bytes" if "graph" in name else "later_call_peak_bytes")
            cells.append(NOT_MEASURED if peak is None else f"{peak / 2**20:.0f}")
        rows.append([*_label_cells(row), *cells])
    return title, header, rows


def _label_cells(row: Mapping[str, Any]) -> list[str]:
    return [row["network"], SHORT[row["dtype"]], str(row["batch"])]


def _three_digits(number: float | None) -> str:
    """Three significant digits, without an exponent."""
    if number is None:
        return NOT_MEASURED
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"
