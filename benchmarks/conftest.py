"""Interleaved rounds for every benchmark, and the table of ratios at the end.

pytest-benchmark times one function after another, so that a drifting machine favours one of them. Here all contenders
take turns in each round: the others are timed in the setup of the one that pytest-benchmark times itself.
"""

import platform
import statistics
import time

import pytest
import torch

ROWS = []


@pytest.fixture
def compare(benchmark):
    """compare(row, fused=f, other=g, ...): time all by turns; ratios of minima and medians go into extra_info."""

    def run(row, rounds, **contenders):
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
        for name, taken in times.items():
            benchmark.extra_info[f"{name}_us"] = round(min(taken) * 1e6, 1)
            for kind, of in (("min", min), ("median", statistics.median)):
                benchmark.extra_info[f"{name}/{first} {kind}"] = round(of(taken) / of(times[first]), 3)
        ROWS.append((row, first, {name: (min(taken), statistics.median(taken)) for name, taken in times.items()}))

    return run


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    write = terminalreporter.write_line
    terminalreporter.section(
        "microseconds, least of all rounds; in brackets the ratio to the first: of least, of medians"
    )
    write(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    for row, first, times in ROWS:
        least, median = times[first]
        cells = [
            f"{name} {low * 1e6:.0f} ({low / least:.2f}, {mid / median:.2f})" for name, (low, mid) in times.items()
        ]
        write(f"{row:<28}" + "  ".join(cells))
