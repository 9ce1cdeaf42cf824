"""Measures the op on a device, beside the same five lines in eager PyTorch and under torch.compile.

Two times are measured: host time per call, with Python and launches, and device time per call when the calls are
replayed from one CUDA graph.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from contenders import eager_cam
from gpu_device import Device
from gpu_machine import reason
from gpu_timing import TIME_WAS_UP, Budget, NotMeasured, calls_to_fill, interleave, rotation, sets_to_rotate, summarize
from torch import Tensor

import gradcam_fast

# (C, h, w, side of the map). The most important batch sizes come first, in case the time does not suffice for all.
SHAPES = [(2048, 7, 7, 224), (512, 14, 14, 224), (256, 56, 56, 224)]
BATCHES = [256, 1, 64, 8, 1024]
PLAN = [
    *itertools.product(["float32"], BATCHES, SHAPES),
    *itertools.product(["bfloat16"], BATCHES[:3], SHAPES[:2]),
]
# The last does not fit into the memory of any device.
TRIAL = [("float32", 16, (256, 7, 7, 28)), ("bfloat16", 1, (2048, 7, 7, 28)), ("float32", 1 << 26, (8, 7, 7, 28))]

# On [0,1] maps, against the float64 reference on the same inputs.
TOLERANCE = 1e-5
CALLS_IN_A_GRAPH = 10

Maps = Callable[[Tensor, Tensor], Tensor]
Case = tuple[str, int, tuple[int, int, int, int]]


def planned_rows(plan: Iterable[Case]) -> list[dict[str, Any]]:
    """The rows of the result, each marked as not measured yet."""
    rows = []
    for dtype, batch, (channels, height, width, side) in plan:
        shape = {"batch": batch, "channels": channels, "rows": height, "columns": width, "side": side}
        per_image = 2 * channels * height * width * getattr(torch, dtype).itemsize + 4 * side * side
        rows.append({**shape, "dtype": dtype, "bytes": batch * per_image, "missing": TIME_WAS_UP, "runs": {}})
    return rows


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether the fused op was compared with the reference and differed."""
    difference = row["runs"].get("fused", {}).get("max_difference", 0.0)
    return difference is None or difference > TOLERANCE


class OpBenchmark:
    """Measures row by row; remembers the seconds left for torch.compile, and why there is no compiler or kernel."""

    def __init__(self, device: Device, compile_seconds: float) -> None:
        self.device = device
        self.compile_seconds_left = compile_seconds
        self.no_compiler: str | None = None
        (kernel,) = (kernel for kernel in gradcam_fast.backend().kernels if kernel.device == device.kind)
        self.no_kernel = None if kernel.fused else f"no kernel: {kernel.why}"

    def measure(self, row: dict[str, Any], row_budget: Budget, total_budget: Budget) -> None:
        """Fill in the row: each contender's difference from the reference and its times, or why it was not measured."""
        maps_bytes = row["bytes"] - 4 * row["batch"] * row["side"] ** 2
        count = sets_to_rotate(maps_bytes, self.device.cache_bytes)
        # Beside the inputs: eager's product, and the stages of its map, once more in the memory pool of the graph.
        needed_bytes = count * maps_bytes + maps_bytes + 10 * 4 * row["batch"] * row["side"] ** 2
        free_bytes = self.device.free_bytes()
        if needed_bytes > 0.9 * free_bytes:
            row["missing"] = f"needs {needed_bytes / 1e9:.1f} GB of memory, and {free_bytes / 1e9:.1f} GB are free"
            return
        shape = (row["batch"], row["channels"], row["rows"], row["columns"])
        input_sets = [self._random_maps(shape, row["dtype"]) for _ in range(count)]
        del row["missing"]
        row["input_sets"] = count
        size = (row["side"], row["side"])
        contenders: dict[str, Maps] = {
            "fused": lambda a, g: gradcam_fast.cam(a, g, size)[0],
            "eager": lambda a, g: eager_cam(a, g, size),
        }
        expected = _reference(*input_sets[0], size)
        turns = {}
        for name in [*contenders, "compiled"]:
            try:
                if name == "fused" and self.no_kernel is not None:
                    raise NotMeasured(self.no_kernel)
                run = contenders[name] if name in contenders else self._compiled(input_sets[0], size)
                difference = _max_difference(run(*input_sets[0]), expected)
                row["runs"][name] = {"max_difference": difference if math.isfinite(difference) else None}
                if name == "fused" and is_wrong(row):
                    raise NotMeasured(f"differs from the reference by {difference:.1e}")
                turns[name] = self._turn(run, input_sets, in_cache=row["batch"] == 1)
            except Exception as error:
                row["runs"].setdefault(name, {})["missing"] = reason(error)
        for name, times in interleave(turns, row_budget, total_budget).items():
            row["runs"][name].update(
                {"missing": reason(times)} if isinstance(times, Exception) else summarize(times, "us")
            )

    def _random_maps(self, shape: tuple[int, ...], dtype: str) -> tuple[Tensor, Tensor]:
        maps = (torch.randn(shape, device=self.device.kind, dtype=getattr(torch, dtype)) for _ in range(2))
        activations, gradients = maps
        return activations, gradients

    def _compiled(self, maps: tuple[Tensor, Tensor], size: tuple[int, int]) -> Maps:
        """The eager lines under torch.compile, compiled for these shapes.

        Raises:
            NotMeasured: compiling fails here, or the time set aside for it is spent.
        """
        if self.no_compiler is not None:
            raise NotMeasured(self.no_compiler)
        if self.compile_seconds_left <= 0:
            raise NotMeasured("the time set aside for torch.compile was up")
        # Without a reset torch.compile silently runs the ninth shape eagerly.
        torch.compiler.reset()
        run = torch.compile(eager_cam, dynamic=False)
        start = time.monotonic()
        try:
            run(*maps, size)
        except Exception as error:
            self.no_compiler = f"torch.compile fails here: {reason(error)}"
            raise NotMeasured(self.no_compiler) from error
        finally:
            self.compile_seconds_left -= time.monotonic() - start
        return lambda activations, gradients: run(activations, gradients, size)

    def _turn(
        self, run: Maps, input_sets: list[tuple[Tensor, Tensor]], in_cache: bool
    ) -> Callable[[], dict[str, float]]:
        """A turn of one contender: queued calls by the host's clock, and replays of a graph by the device's clock."""
        device = self.device
        run_calls = rotation(input_sets, run)
        calls_in_graph = len(input_sets) * -(-CALLS_IN_A_GRAPH // len(input_sets))
        graph = device.as_graph(lambda: run_calls(calls_in_graph))
        cached_graph = device.as_graph(lambda: rotation(input_sets[:1], run)(calls_in_graph)) if in_cache else None
        graph()
        device.synchronize()
        start = time.perf_counter()
        run_calls(5)
        device.synchronize()
        queued_calls = calls_to_fill((time.perf_counter() - start) / 5, 0.01, 1000)
        replays = calls_to_fill(device.seconds(graph, 1), 0.01, 50)

        def turn() -> dict[str, float]:
            device.synchronize()
            start = time.perf_counter()
            run_calls(queued_calls)
            device.synchronize()
            times = {"host": (time.perf_counter() - start) / queued_calls}
            times["device"] = device.seconds(graph, replays) / calls_in_graph
            if cached_graph is not None:
                cached_graph()
                times["in_cache"] = device.seconds(cached_graph, replays) / calls_in_graph
            return times

        return turn


def _reference(activations: Tensor, gradients: Tensor, size: tuple[int, int], chunk: int = 32) -> Tensor:
    """The reference in float64, rounded to float32; in chunks, because it needs many times the memory of its inputs."""
    chunks = zip(activations.split(chunk), gradients.split(chunk), strict=True)
    return torch.cat([gradcam_fast.reference.cam(a.double(), g.double(), size)[0].float() for a, g in chunks])


def _max_difference(heatmaps: Tensor, expected: Tensor) -> float:
    return float((heatmaps.float().view_as(expected) - expected).abs().max())
