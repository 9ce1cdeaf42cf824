"""The GPU benchmark without a GPU: its time budget and rounds, the comparison before timing, and what is refused.

Whether the device's clock and graphs are used correctly, only a run on a GPU shows.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import contenders  # noqa: E402
import gpu  # noqa: E402
import gpu_explanations  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_op  # noqa: E402
from gpu_device import Host  # noqa: E402
from gpu_timing import Budget, calls_to_fill, interleave, rotation, sets_to_rotate, summarize  # noqa: E402


class FakeClock:
    now = 0.0

    def __call__(self):
        return self.now

    def turn_taking(self, seconds):
        def turn():
            self.now += seconds
            return {"queued": seconds}

        return turn


def test_contenders_take_turns_and_slow_ones_few():
    clock, order = FakeClock(), []
    fast, slow = clock.turn_taking(0.01), clock.turn_taking(1.0)
    turns = {"fast": lambda: order.append("fast") or fast(), "slow": lambda: order.append("slow") or slow()}
    times = interleave(turns, Budget(60, clock), Budget(60, clock))
    assert (len(times["fast"]), len(times["slow"])) == (20, 3)
    assert order[:7] == ["fast", "slow"] * 3 + ["fast"]


def test_an_expired_row_budget_still_gives_three_rounds():
    clock = FakeClock()
    times = interleave({"fast": clock.turn_taking(0.1)}, Budget(0, clock), Budget(60, clock))
    assert len(times["fast"]) == 3


def test_no_turn_starts_after_the_deadline_and_every_contender_is_listed():
    clock = FakeClock()
    times = interleave({"long": clock.turn_taking(5), "late": clock.turn_taking(1)}, Budget(2, clock), Budget(4, clock))
    assert times["long"] == [{"queued": 5}]
    assert str(times["late"]) == "time was up"


def test_a_failing_contender_does_not_stop_the_others():
    clock = FakeClock()
    turns = iter([{"queued": 1.0}])
    times = interleave(
        {"fails": lambda: next(turns), "goes_on": clock.turn_taking(0.1)}, Budget(9, clock), Budget(9, clock)
    )
    assert isinstance(times["fails"], StopIteration)
    assert len(times["goes_on"]) == 20


def test_a_share_is_a_part_of_the_remaining_time():
    clock = FakeClock()
    budget = Budget(100, clock)
    clock.now = 40
    assert (budget.share(4, 60).left(), budget.share(4, 8).left(), budget.share(0, 99).left()) == (15, 8, 60)
    clock.now = 101
    assert budget.expired() and budget.share(2, 8).expired()


def test_a_summary_names_its_units():
    turns = [{"host": 2e-6, "device": 1e-6}, {"host": 8e-6, "device": 3e-6}, {"host": 3e-6, "device": 2e-6}]
    expected = {"host_us_least": 2, "host_us_median": 3, "device_us_least": 1, "device_us_median": 2, "rounds": 3}
    assert summarize(turns, "us") == pytest.approx(expected)


def test_inputs_rotate_until_the_cache_no_longer_holds_them():
    assert [sets_to_rotate(size, 50) for size in (1, 60, 200, 1000)] == [200, 4, 1, 1]
    calls = []
    run_calls = rotation([(1,), (2,), (3,)], calls.append)
    run_calls(2), run_calls(5)
    assert calls == [1, 2, 3, 1, 2, 3, 1]
    assert [calls_to_fill(seconds, 0.01, 50) for seconds in (0, 0.003, 1)] == [50, 4, 1]


def test_messages_lose_their_folders_and_all_but_the_first_line():
    error = OSError("no /home/someone/lib/libx.so: '/tmp/a b'\nmore")
    assert gpu_machine.reason(error) == "OSError: no libx.so: 'a b'"
    assert gpu_machine.commit("abc-dirty") == {"commit": "abc", "dirty": True}
    assert gpu_machine.commit("abc") == {"commit": "abc", "dirty": False}


@pytest.fixture
def op_row():
    (row,) = gpu_op.planned_rows([("float32", 2, (8, 5, 5, 10))])
    return row


def measure(row, no_kernel=None):
    benchmark = gpu_op.OpBenchmark(Host(), compile_seconds=0)
    benchmark.no_kernel = no_kernel
    benchmark.measure(row, Budget(0), Budget(60))
    return row


def test_the_op_is_compared_and_timed(op_row):
    row = measure(op_row)
    assert row["bytes"] == 4 * 2 * (2 * 8 * 5 * 5 + 10 * 10)
    assert "missing" not in row and not gpu_op.is_wrong(row)
    assert row["runs"]["fused"]["max_difference"] < 1e-5 and row["runs"]["eager"]["max_difference"] < 1e-5
    assert 0 < row["runs"]["fused"]["device_us_least"] <= row["runs"]["fused"]["device_us_median"]
    assert row["runs"]["compiled"]["missing"] == "the time set aside for torch.compile was up"


@pytest.mark.parametrize("value", [0.5, torch.nan])
def test_a_wrong_map_is_not_timed(op_row, monkeypatch, value):
    monkeypatch.setattr(gpu_op.gradcam_fast, "cam", lambda *maps: [torch.full((2, 10, 10), value)])
    row = measure(op_row)
    assert gpu_op.is_wrong(row)
    assert row["runs"]["fused"]["missing"].startswith("differs from the reference by")
    assert "device_us_least" not in row["runs"]["fused"]
    json.dumps(row, allow_nan=False)


def test_without_a_kernel_the_reference_is_not_timed_as_fused(op_row):
    assert measure(op_row, no_kernel="no kernel: not built")["runs"]["fused"] == {"missing": "no kernel: not built"}


def test_a_row_that_does_not_fit_into_memory_says_so():
    (row,) = gpu_op.planned_rows([("float32", 1 << 26, (8, 7, 7, 28))])
    assert "GB of memory" in measure(row)["missing"]
    assert row["runs"] == {}


def test_an_explanation_is_compared_and_timed_beside_the_others(monkeypatch):
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 3)).eval()
    monkeypatch.setitem(contenders.NETWORKS, "small", ("Small", "1"))
    others = {"recipe": contenders.recipe, "torchcam": lambda model, layer: lambda images: images.mean(1)}
    monkeypatch.setattr(contenders, "CONTENDERS", {**others, "captum": cannot_explain})
    (row,) = gpu_explanations.planned_rows([("small", "float32", 20)], 12)
    gpu_explanations.measure(Host(), model, row, Budget(0), Budget(60))
    runs = row["runs"]
    assert "missing" not in row
    assert (runs["recipe"]["images_timed"], runs["explainer"]["images_timed"]) == (16, 20)
    assert (runs["recipe"]["images_differing"], runs["torchcam"]["images_differing"]) == (0, 8)
    assert 0 < runs["explainer"]["queued_ms_least"] and 0 < runs["inference"]["alone_ms_median"]
    assert runs["captum"]["missing"] == "it cannot explain this network"
    assert runs["explainer, graph"]["missing"].startswith(("not in this version", "explained eagerly"))


def cannot_explain(model, layer):
    raise NotImplementedError("it cannot explain this network")


def test_after_the_deadline_everything_is_listed_as_not_measured(tmp_path, monkeypatch, capsys):
    out = tmp_path / "trial.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--trial", "cpu", "--minutes", "0", "--out", str(out)])
    assert gpu.main() == 0
    assert "time was up  3     resnet18 f32 B=1, resnet18 f32 B=3, resnet18 bf16 B=2" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["device"] == "cpu, trial, no GPU numbers"
    assert {row["missing"] for row in [*results["op"], *results["explanations"]]} == {"time was up"}
    assert str(BENCHMARKS.parent) not in out.read_text()


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpu.py measures a GPU, and torch") and err.count("\n") == 1
