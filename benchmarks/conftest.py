"""Interleaved timing for every benchmark, what the stored JSON holds beside the times, and the tables at the end.

pytest-benchmark times one function after another, so a drifting clock favours one of them. Here it times rounds; every
contender runs once in each round.
"""

import random
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

import gradcam_fast

TABLES = {}
LIBRARIES = ("gradcam-fast", "torchvision", "captum", "grad-cam", "torchcam")
MIN_ROUNDS, MAX_ROUNDS = 8, 200


@pytest.fixture
def compare(benchmark):
    """compare(table, row, {"fused": f, "other": g}, ratios, rounds=...) times all of them in interleaved rounds.

    ``ratios`` names pairs such as "other/fused". With ``seconds`` instead of ``rounds`` there are as many rounds as
    about fit into this time, at least eight. Without ``warm_up`` the first run of each is timed, too. Times, ratios of
    least and of median times, and ``facts`` go into extra_info and into the table; the ratios of least times are
    returned.
    """

    def run(table, row, contenders, ratios, rounds=None, seconds=None, facts=None, warm_up=True):
        times = {name: [] for name in contenders}
        for contender in contenders.values() if warm_up else ():
            contender()
        start = time.perf_counter()
        if rounds is None:
            for contender in contenders.values():
                contender()
            rounds_that_fit = seconds / (time.perf_counter() - start)
            rounds = min(max(round(rounds_that_fit), MIN_ROUNDS), MAX_ROUNDS)
        order, generator = list(contenders.items()), random.Random(0)

        def run_round():
            for name, contender in order:
                start = time.perf_counter()
                contender()
                times[name].append(time.perf_counter() - start)
            # Shuffled, so that no contender always finds in the caches what the same other one left there.
            generator.shuffle(order)

        # The times that pytest-benchmark itself shows are those of a round.
        benchmark.pedantic(run_round, rounds=rounds, iterations=1)
        least = {name: min(taken) for name, taken in times.items()}
        median = {name: statistics.median(taken) for name, taken in times.items()}
        pairs = {pair: pair.split("/") for pair in ratios}
        record = {
            "table": table,
            "row": row,
            "least seconds": least,
            "median seconds": median,
            "ratio of least": {pair: least[above] / least[below] for pair, (above, below) in pairs.items()},
            "ratio of medians": {pair: median[above] / median[below] for pair, (above, below) in pairs.items()},
            **(facts or {}),
        }
        benchmark.extra_info.update(record)
        TABLES.setdefault(table, []).append(record)
        return record["ratio of least"]

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    for private_entry in ("node", "release"):
        machine_info.pop(private_entry, None)
    machine_info["cpu"].pop("flags", None)
    machine_info["versions"] = {"torch": torch.__version__, **{name: _version(name) for name in LIBRARIES}}
    machine_info["threads"] = torch.get_num_threads()
    kernel = gradcam_fast.backend().kernels[0]
    machine_info["kernel"] = kernel.why if kernel.fused else "reference"


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["commit_info"].pop("project", None)
    for record in output_json["benchmarks"]:
        record["stats"].pop("data", None)


def _version(library):
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def pytest_terminal_summary(terminalreporter):
    for table, rows in TABLES.items():
        write = terminalreporter.write_line
        terminalreporter.section(table)
        write("ratios of least times (of medians) | least times in milliseconds; all in interleaved rounds")
        for row in rows:
            ratios = row["ratio of least"], row["ratio of medians"]
            cells = "  ".join(f"{pair} {ratios[0][pair]:.3f} ({ratios[1][pair]:.3f})" for pair in ratios[0])
            times = " ".join(f"{name} {taken * 1e3:.3g}" for name, taken in row["least seconds"].items())
            write(f"{row['row']:<26} {cells}  | {times}")
        kinds = ("ratio of least", "ratio of medians")
        for pair in dict.fromkeys(pair for row in rows for pair in row["ratio of least"]):
            # Some contenders cannot explain every network.
            means = (
                statistics.geometric_mean([row[kind][pair] for row in rows if pair in row[kind]]) for kind in kinds
            )
            write("geometric mean of {}: {:.3f} ({:.3f})".format(pair, *means))
