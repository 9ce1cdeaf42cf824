"""The report shows what the stored records contain: ratios, marks, bounds, means; GPU numbers only from a GPU."""

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


def benchmark_json(*records):
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


def report_lines(report, folder, *records):
    report.write(benchmark_json(*records), folder)
    return (folder / "REPORT.md").read_text().splitlines()


def test_the_report_names_machine_versions_commit_and_date(report, tmp_path):
    lines = report_lines(report, tmp_path)
    assert (
        "Machine: A processor, 2 threads, Linux x86_64, Python 3.11.7. Versions: torch 2.14.1. Kernel: fused. Commit "
        "0123456, with changes not committed. 2026-01-02." in lines
    )
    assert "Nothing has been measured on a GPU yet; the results of `make gpu` will be shown here." in lines


def test_the_cost_of_an_explanation_is_a_ratio_to_the_prediction(report, tmp_path):
    least, medians = ({"explainer": a, "inference": 0.02, "ten": b} for a, b in ((0.021, 0.042), (0.022, 0.033)))
    pairs = ("explainer/inference", "ten/explainer")
    lines = report_lines(
        report, tmp_path, record("an explanation beside the prediction", "A net, B = 1", least, medians, pairs)
    )
    assert "| A net, B = 1 | 20 ms | 1.050 (1.100) | 2.000 (1.500) |" in lines


def test_a_differing_map_has_a_star_and_a_missing_library_a_dash(report, tmp_path):
    times = {"explainer": 0.02, "inference": 0.01, "torchcam": 0.03, "captum": 0.05}
    facts = {"another map": ["captum"], "largest difference of the maps": {"captum": 0.5, "torchcam": 0.0}}
    pairs = ("torchcam/explainer", "captum/explainer")
    lines = report_lines(
        report, tmp_path, record("an explanation beside other libraries", "A net", times, times, pairs, **facts)
    )
    assert "| A net | 2.00 | - | 3.00 | 5.00* | - | - | 1.50 | 2.50 | - |" in lines
    assert "![Times of several libraries, in predictions](plots/libraries.png)" in lines
    assert (tmp_path / "plots" / "libraries.png").read_bytes().startswith(b"\x89PNG")


def test_the_cost_of_a_method_is_in_predictions(report, tmp_path):
    times = {"explainer": 0.3, "64 channels": 0.05, "pytorch-grad-cam": 2.4, "ten predictions": 0.1}
    pairs = ("pytorch-grad-cam/explainer",)
    lines = report_lines(report, tmp_path, record("methods in predictions", "A net, scorecam", times, times, pairs))
    assert "| A net, scorecam | 30 | 5 | 240 | - |" in lines


def test_correlations_have_three_digits(report, tmp_path):
    of_cat = {"extra_info": {"table": "Score-CAM of 64 channels", "row": "cat", "correlation": 0.98765}}
    assert "| cat | 0.988 |" in report_lines(report, tmp_path, of_cat)


def test_the_memory_bound_is_prediction_and_maps_plus_five_percent(report, tmp_path):
    peaks = {"inference": 100e6, "explainer": 130e6, "explainer, layer named": 120e6, "torchcam": 900e6}
    memory = {
        "extra_info": {
            "table": "peak memory",
            "row": "A net",
            "peak bytes": peaks,
            "bytes of activations, gradients and maps": 20e6,
        }
    }
    assert "| A net | 100 | 120 | 130 | 126 | - | 900 | - | - |" in report_lines(report, tmp_path, memory)


def test_a_table_of_ratios_ends_with_geometric_means(report, tmp_path):
    rows = [
        record("methods", name, {"a": above, "b": 1.0}, {"a": 2 * above, "b": 1.0}, ("a/b",))
        for name, above in (("one", 2.0), ("two", 8.0))
    ]
    lines = report_lines(report, tmp_path, *rows)
    assert lines[lines.index("|  | a / b |") :][2:5] == [
        "| one | 2.00 (4.00) |",
        "| two | 8.00 (16.00) |",
        "| geometric mean | 4.00 (8.00) |",
    ]


def test_a_ratio_that_some_rows_lack_is_a_dash_there(report, tmp_path):
    times = {"a": 2.0, "b": 1.0}
    rows = [record("methods", "one", times, times, ("a/b",)), record("methods", "two", times, times, ("a/b", "b/a"))]
    lines = report_lines(report, tmp_path, *rows)
    assert "| one | 2.00 (2.00) | - |" in lines and "| geometric mean | 2.00 (2.00) | 0.50 (0.50) |" in lines


def test_the_growth_tables_share_one_plot(report, tmp_path):
    tables = list(importlib.import_module("report_plots").GROWTH)[:2]
    rows = [
        record(table, str(x), {"explainer": x * 0.011, "inference": x * 0.01}, {"explainer": 1, "inference": 1}, [pair])
        for table in tables
        for x in (1, 2)
        for pair in ["explainer/inference"]
    ]
    lines = report_lines(report, tmp_path, *rows)
    assert lines.count("![How the cost of an explanation grows](plots/growth.png)") == 1
    assert lines.count("| 2 | 22 ms | 20 ms | 1.100 (1.000) |") == 2


def test_the_results_of_a_trial_are_never_reported(report, tmp_path):
    trial = {"device": "cpu, trial, no GPU numbers", "machine": {}, "versions": {}, "dirty": False, "op": []}
    with pytest.raises(ValueError, match="no numbers of a GPU"):
        report.write(benchmark_json(), tmp_path, [trial])
    assert not (tmp_path / "REPORT.md").exists()


def test_a_row_measured_apart_takes_the_place_of_the_same_row(report, tmp_path):
    table, pair = "a compiled explanation beside the compiled prediction", "compiled explanation/compiled prediction"

    def run(commit, *seconds):
        rows = [
            record(table, name, {"compiled explanation": above, "compiled prediction": 1.0}, {pair.split("/")[0]: 1.0}
                   | {"compiled prediction": 1.0}, (pair,))
            for name, above in zip(("one", "two"), seconds, strict=False)
        ]  # fmt: skip
        stored = benchmark_json(*rows)
        stored["commit_info"]["id"] = commit
        return stored

    report.write(run("aaaaaaa", 8.0, 2.0), tmp_path, parts_alone={"compiled-resnet18": run("bbbbbbb", 4.0)})
    lines = (tmp_path / "REPORT.md").read_text().splitlines()
    assert "| one | 4.00 (1.00) |" in lines and "| two | 2.00 (1.00) |" in lines
    assert "| one | 8.00 (1.00) |" not in lines
    assert any(line.startswith("Measured alone: compiled-resnet18. ") and "Commit bbbbbbb" in line for line in lines)
