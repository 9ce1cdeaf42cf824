"""The report says what the stored records say: ratios, marks, bounds, means; and of a GPU only what was made on one."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("report")


def record(table, row, least, medians, pairs, **facts):
    def ratios(times):
        return {pair: times[pair.split("/")[0]] / times[pair.split("/")[1]] for pair in pairs}

    return {
        "extra_info": {
            "table": table,
            "row": row,
            "least seconds": least,
            "median seconds": medians,
            "ratio of least": ratios(least),
            "ratio of medians": ratios(medians),
            **facts,
        }
    }


def stored(*records):
    return {
        "machine_info": {
            "versions": {"torch": "2.14.1", "captum": None},
            "cpu": {"brand_raw": "A processor"},
            "processor": "",
            "threads": 2,
            "system": "Linux",
            "machine": "x86_64",
            "python_version": "3.11.7",
            "kernel": "fused",
        },
        "commit_info": {"id": "0123456789", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": list(records),
    }


def written(report, folder, *records):
    report.write(stored(*records), folder)
    return (folder / "REPORT.md").read_text().splitlines()


def test_machine_versions_commit_and_date_are_on_it(report, tmp_path):
    lines = written(report, tmp_path)
    assert (
        "Machine: A processor, 2 threads, Linux x86_64, Python 3.11.7. Versions: torch 2.14.1. Kernel: fused. Commit "
        "0123456, with changes not committed. 2026-01-02." in lines
    )
    assert "Nothing has been measured on a GPU; what `make gpu` stores on one goes here." in lines


def test_an_explanation_is_told_in_predictions(report, tmp_path):
    least, medians = ({"explainer": a, "inference": 0.02, "ten": b} for a, b in ((0.021, 0.042), (0.022, 0.033)))
    pairs = ("explainer/inference", "ten/explainer")
    lines = written(
        report, tmp_path, record("an explanation beside the prediction", "A net, B = 1", least, medians, pairs)
    )
    assert "| A net, B = 1 | 20 ms | 1.050 (1.100) | 2.000 (1.500) |" in lines


def test_another_map_has_a_star_and_who_is_missing_a_dash(report, tmp_path):
    times = {"explainer": 0.02, "inference": 0.01, "torchcam": 0.03, "captum": 0.05}
    facts = {"another map": ["captum"], "largest difference of the maps": {"captum": 0.5, "torchcam": 0.0}}
    pairs = ("torchcam/explainer", "captum/explainer")
    lines = written(
        report, tmp_path, record("an explanation beside other libraries", "A net", times, times, pairs, **facts)
    )
    assert "| A net | 2.00 | - | 3.00 | 5.00* | - | - | 1.50 | 2.50 | - |" in lines
    assert "![Times of several libraries, in predictions](plots/libraries.png)" in lines
    assert (tmp_path / "plots" / "libraries.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_held_against_prediction_maps_and_five_percent(report, tmp_path):
    peaks = {"inference": 100e6, "explainer": 130e6, "explainer, layer named": 120e6, "torchcam": 900e6}
    memory = {
        "extra_info": {
            "table": "peak memory",
            "row": "A net",
            "peak bytes": peaks,
            "bytes of activations, gradients and maps": 20e6,
        }
    }
    assert "| A net | 100 | 120 | 130 | 126 | - | 900 | - | - |" in written(report, tmp_path, memory)


def test_a_table_of_ratios_ends_with_geometric_means(report, tmp_path):
    rows = [
        record("methods", name, {"a": above, "b": 1.0}, {"a": 2 * above, "b": 1.0}, ("a/b",))
        for name, above in (("one", 2.0), ("two", 8.0))
    ]
    lines = written(report, tmp_path, *rows)
    assert lines[lines.index("|  | a / b |") :][2:5] == [
        "| one | 2.00 (4.00) |",
        "| two | 8.00 (16.00) |",
        "| geometric mean | 4.00 (8.00) |",
    ]


def test_how_costs_grow_is_one_plot_over_its_tables(report, tmp_path):
    tables = list(importlib.import_module("report_plots").GROWTH)[:2]
    rows = [
        record(table, str(x), {"explainer": x * 0.011, "inference": x * 0.01}, {"explainer": 1, "inference": 1}, [pair])
        for table in tables
        for x in (1, 2)
        for pair in ["explainer/inference"]
    ]
    lines = written(report, tmp_path, *rows)
    assert lines.count("![How the cost of an explanation grows](plots/growth.png)") == 1
    assert lines.count("| 2 | 22 ms | 20 ms | 1.100 (1.000) |") == 2


def test_what_a_trial_of_gpu_py_wrote_never_gets_in(report, tmp_path):
    trial = {"device": "cpu, trial, no GPU numbers", "machine": {}, "versions": {}, "dirty": False, "op": []}
    with pytest.raises(ValueError, match="no numbers of a GPU"):
        report.write(stored(), tmp_path, [trial])
    assert not (tmp_path / "REPORT.md").exists()
