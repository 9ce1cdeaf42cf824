"""Interleaved rounds for every benchmark, and tables of times and ratios at the end.

pytest-benchmark times one function after another, so that a drifting machine favours one of them. Here all contenders
take turns in each round: the others are timed in the setup of the one that pytest-benchmark times itself.
"""

import math
import platform
import statistics
import time
from pathlib import Path

import pytest
import torch

TABLES = {}


@pytest.fixture
def compare(benchmark):
    """compare(table, row, rounds, ratios, fused=f, other=g, ...) times all by turns.

    ``ratios`` names pairs such as "other/fused". Least times, and ratios of least and of median times, go into
    extra_info and into the table.
    """

    def run(table, row, rounds, ratios, **contenders):
        (first, function), *others = contenders.items()
        times = {name: [] for name in contenders}
        for each in contenders.values():
            each(), each()

        def take_turns():
            for name, each in others:
                start = time.perf_counter()
                each()
                times[name].append(time.perf_counter() - start)

        def timed():
            start = time.perf_counter()
            function()
            times[first].append(time.perf_counter() - start)

        benchmark.pedantic(timed, setup=take_turns, rounds=rounds, iterations=1)
        least = {name: min(taken) for name, taken in times.items()}
        median = {name: statistics.median(taken) for name, taken in times.items()}
        cells = {}
        for pair in ratios:
            above, below = pair.split("/")
            cells[pair] = least[above] / least[below], median[above] / median[below]
            benchmark.extra_info[f"{pair} least"], benchmark.extra_info[f"{pair} median"] = cells[pair]
        for name, taken in least.items():
            benchmark.extra_info[f"{name} us"] = taken * 1e6
        TABLES.setdefault(table, []).append((row, least, cells))

    return run


def pytest_terminal_summary(terminalreporter):
    for table, rows in TABLES.items():
        write = terminalreporter.write_line
        terminalreporter.section(table)
        write(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}")
        write("least time of each in microseconds; ratios of least times, in brackets of medians; all by turns")
        for row, least, cells in rows:
            times = " ".join(f"{name} {taken * 1e6:.0f}" for name, taken in least.items())
            write(f"{row:<26} {'  '.join(f'{pair} {a:.2f} ({b:.2f})' for pair, (a, b) in cells.items())}  | {times}")
        means = {pair: [_geometric_mean(row[2][pair][i] for row in rows) for i in (0, 1)] for pair in rows[0][2]}
        write(f"{'geometric means':<26} {'  '.join(f'{pair} {a:.2f} ({b:.2f})' for pair, (a, b) in means.items())}")


def _geometric_mean(numbers):
    logarithms = [math.log(number) for number in numbers]
    return math.exp(sum(logarithms) / len(logarithms))


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
