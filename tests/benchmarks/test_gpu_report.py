"""Tables and goals from GPU results, checked against values by hand; and a trial is never taken for a measurement."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_explanations  # noqa: E402
import gpu_goals  # noqa: E402
import gpu_op  # noqa: E402
import gpu_print  # noqa: E402
import gpu_report  # noqa: E402


def run_taking(milliseconds, **entries):
    return {"images_timed": 1, "queued_ms_median": milliseconds, "alone_ms_median": milliseconds + 1, **entries}


def explanation_row(network, batch, **runs):
    names = {"graphed": "inference, graph", "graph": "explainer, graph", "pgc": "pytorch-grad-cam"}
    named = {names.get(name, name): run for name, run in runs.items()}
    return {"network": network, "torchvision": network, "dtype": "float32", "batch": batch, "runs": named}


@pytest.fixture
def results():
    op = {"channels": 2048, "rows": 7, "columns": 7, "side": 224, "dtype": "float32"}
    fused = {"device_us_median": 80.0, "host_us_median": 90.0}
    return {
        "device": "cuda",
        "date": "2026-01-02 03:04 UTC",
        "commit": "abc",
        "dirty": True,
        "machine": {"gpu": "A GPU", "driver": "1.2", "cpu": "A CPU", "cpu_cores": 4},
        "versions": {"torch": "2", "torchvision": "3", "cuda": "4", "gradcam_fast": "5", "backend": ["cuda fused"]},
        "settings": {"tf32_in_convolutions": True, "cudnn_benchmark": False},
        "copy": {"first_gb_per_s": 4000.0},
        "op": [
            {**op, "batch": 256, "bytes": 256_000_000, "runs": {"fused": fused, "eager": {"missing": "out of memory"}}},
            {**op, "batch": 1, "bytes": 1_000_000, "missing": "time was up", "runs": {}},
        ],
        "explanations": [
            explanation_row(
                "ResNet-50",
                1,
                inference=run_taking(2.0, later_call_peak_bytes=2**20),
                graphed=run_taking(1.0),
                explainer=run_taking(2.1, later_call_peak_bytes=2**21),
                graph=run_taking(1.02, first_calls_peak_bytes=2**22, later_call_peak_bytes=0, warning="hot"),
                pgc=run_taking(30.0, max_difference=0.5, images_differing=1, images_compared=1),
            ),
            explanation_row(
                "VGG16", 32, inference=run_taking(20.0, images_timed=32), explainer=run_taking(22.0, images_timed=32),
                recipe=run_taking(50.0, images_timed=16), pgc={"missing": "not installed"},
            ),
        ],
    }  # fmt: skip


def test_the_tables_show_what_was_measured_and_what_was_not(results):
    op, explanations, alone, memory, differing, warnings, missing = gpu_report.tables(results)
    assert op[1][3:] == ["MB", "fused", "eager", "compiled", "GB/s", "of copy", "fused in cache"]
    assert op[2] == [
        ["2048x7x7", "f32", "1", "1.00", "-", "-", "-", "-", "-", "-"],
        ["2048x7x7", "f32", "256", "256", "80.0 (90.0)", "-", "-", "3200", "80%", "-"],
    ]
    assert explanations[1][3:] == ["inference", *gpu_report.EXPLAINERS]
    assert explanations[2] == [
        ["ResNet-50", "f32", "1", "2.00 (1.00)", "1.05", "0.51 [1.02]", "-", "-", "-", "-", "15.00*"],
        ["VGG16", "f32", "32", "20.0 (-)", "1.10", "-", "-", "5.00~", "-", "-", "-"],
    ]
    assert alone[2] == [["ResNet-50", "f32", "3.00", "2.00", "3.10", "2.02", "-", "-", "-", "-", "31.0"]]
    assert memory[2] == [["VGG16", "f32", "32", *["-"] * 8]]
    assert differing[2] == [["pytorch-grad-cam", "f32", "1", "ResNet-50 f32 B=1", "5e-01"]]
    assert warnings[2] == [["explainer, graph", "hot", "1", "ResNet-50 f32 B=1"]]
    assert missing[2] == [
        ["op", "time was up", "1", "2048 f32 B=1"],
        ["eager", "out of memory", "1", "2048 f32 B=256"],
        ["pytorch-grad-cam", "not installed", "1", "VGG16 f32 B=32"],
    ]


def test_memory_is_that_of_a_call_or_of_recording_the_graph(results):
    del results["explanations"][1]
    memory = gpu_report.tables(results)[3]
    assert memory[2] == [["ResNet-50", "f32", "1", "1", "2", "4", "-", "-", "-", "-", "-"]]


def test_the_goals_are_met_missed_or_not_all_measured(results):
    assert gpu_report.goals(results) == [
        ("op, B=256, 2048x7x7, float32", ">= 80 % of copy", "80.0%", True),
        ("op, B=1, 2048x7x7, float32, on the device", "<= 8 us", "not measured", None),
        (
            "explainer with a graph / inference with a graph, B=1", "<= 1.05",
            "1.02 to 1.02, worst at ResNet-50 float32 B=1; 1 of 1", True,
        ),
        (
            "explainer with a graph / inference, B=1", "<= 0.33",
            "0.51 to 0.51, worst at ResNet-50 float32 B=1; 0 of 1", False,
        ),
        ("explainer / inference, B>=32", "<= 1.05", "1.10 to 1.10, worst at VGG16 float32 B=32; 0 of 1", False),
        (
            "pytorch-grad-cam / explainer", ">= 10.00",
            "14.29 to 14.29, worst at ResNet-50 float32 B=1; 1 of 2, 1 not measured", None,
        ),
        (
            "pytorch-grad-cam / explainer with a graph", ">= 10.00",
            "29.41 to 29.41, worst at ResNet-50 float32 B=1; 1 of 2, 1 not measured", None,
        ),
        ("compiled explainer / compiled inference, where measured", "<= 1.05", "not measured (0 of 0)", None),
    ]  # fmt: skip


@pytest.mark.parametrize(("microseconds", "met"), [(8.0, True), (8.1, False)])
def test_the_device_time_of_one_image_is_judged(results, microseconds, met):
    results["op"][1]["runs"]["fused"] = {"device_us_median": microseconds, "host_us_median": 20.0}
    measured = f"{microseconds} us (20.0 us per call by the host's clock)"
    assert gpu_report.goals(results)[1][2:] == (measured, met)


def test_the_time_for_some_images_is_scaled_up_to_all(results):
    row = results["explanations"][1]
    assert gpu_goals.time_ratio(row, "recipe", "inference") == 5
    assert gpu_goals.time_ratio(row, "torchcam", "inference") is None


def test_the_text_ends_with_the_goals(results):
    text = gpu_print.text(results)
    assert text.startswith("A GPU, driver 1.2; A CPU, 4 cores\n")
    assert "commit abc, with changes\ncuda fused\nTF32: convolutions True\n" in text
    assert "copies on the device: 4000 GB/s, at the end not measured\n" in text
    assert text.splitlines()[-9].split() == ["goal", "required", "measured"]
    assert text.splitlines()[-6].startswith(
        "explainer with a graph / inference with a graph, B=1"
    ) and text.splitlines()[-6].endswith("  met")


def test_the_text_of_a_full_run_is_shorter_than_11000_characters(results):
    results["op"] = gpu_op.planned_rows(gpu_op.PLAN)
    results["explanations"] = gpu_explanations.planned_rows(gpu_explanations.PLAN, 224)
    numbers = {"images_timed": 1, "rounds": 3, "first_calls_peak_bytes": 2**36, "later_call_peak_bytes": 2**36}
    for row in [*results["op"], *results["explanations"]]:
        assert row.pop("missing") == "time was up"
        times = dict.fromkeys(("host_us_median", "device_us_median", "queued_ms_median", "alone_ms_median"), 99.99)
        names = gpu_report.OP_CONTENDERS if "side" in row else ("inference", "inference, graph", *gpu_report.EXPLAINERS)
        row["runs"] = dict.fromkeys(names, numbers | times)
    assert 8000 < len(gpu_print.text(results)) < 11000


def test_the_results_of_a_trial_are_refused(results):
    results["device"] = "cpu, trial, no GPU numbers"
    for read in (gpu_report.tables, gpu_report.goals, gpu_print.text):
        with pytest.raises(gpu_report.NotMeasuredOnAGPU, match="no numbers of a GPU"):
            read(results)
    assert all(title.startswith("TRIAL, NO GPU NUMBERS") for title, _, _ in gpu_report.tables(results, trial=True))
    assert {met for _, _, _, met in gpu_report.goals(results, trial=True)} == {None}


def test_reading_results_needs_no_torch():
    code = "import gpu_print, gpu_timing, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
