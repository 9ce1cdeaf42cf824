"""The op on a device, beside the same five lines in eager PyTorch and under torch.compile.

Two times are told apart: what a call costs the host, Python and launches included, and what the device takes when the
calls are replayed from one graph. Knows nothing of networks and reports.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from contenders import eager
from gpu_device import Device
from gpu_machine import reason
from gpu_timing import TIME_WAS_UP, Budget, NotMeasured, by_turns, calls_for, rotation, sets_to_rotate, summary
from torch import Tensor

import gradcam_fast

# (C, h, w) -> side. The batches stand in the order of their importance, should the time not suffice for all.
SHAPES = [(2048, 7, 7, 224), (512, 14, 14, 224), (256, 56, 56, 224)]
BATCHES = [256, 1, 64, 8, 1024]
PLAN = [
    *itertools.product(["float32"], BATCHES, SHAPES),
    *itertools.product(["bfloat16"], BATCHES[:3], SHAPES[:2]),
]
# The last is beyond the memory of any device.
TRIAL = [("float32", 16, (256, 7, 7, 28)), ("bfloat16", 1, (2048, 7, 7, 28)), ("float32", 1 << 26, (8, 7, 7, 28))]

# On [0,1] maps, from the float64 reference on the same inputs.
TOLERANCE = 1e-5
CALLS_IN_A_GRAPH = 10

Maps = Callable[[Tensor, Tensor], Tensor]
Case = tuple[str, int, tuple[int, int, int, int]]


def planned(plan: Iterable[Case]) -> list[dict[str, Any]]:
    """The rows of the result, each unmeasured as yet and saying so."""
    rows = []
    for dtype, batch, (channels, height, width, side) in plan:
        shape = {"batch": batch, "channels": channels, "rows": height, "columns": width, "side": side}
        per_image = 2 * channels * height * width * getattr(torch, dtype).itemsize + 4 * side * side
        rows.append({**shape, "dtype": dtype, "bytes": batch * per_image, "missing": TIME_WAS_UP, "runs": {}})
    return rows


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether the fused op was compared with the reference, and differed."""
    apart = row["runs"].get("fused", {}).get("apart", 0.0)
    return apart is None or apart > TOLERANCE


class OpBenchmark:
    """Measures row by row; keeps what torch.compile has cost so far, and why there is none, or no kernel."""

    def __init__(self, device: Device, compile_seconds: float) -> None:
        self.device = device
        self.compile_left = compile_seconds
        self.no_compiler: str | None = None
        (kernel,) = (kernel for kernel in gradcam_fast.backend().kernels if kernel.device == device.kind)
        self.no_kernel = None if kernel.fused else f"no kernel: {kernel.why}"

    def measure(self, row: dict[str, Any], share: Budget, whole: Budget) -> None:
        """Fill in the row: of each contender how far it is from the reference, and its times; or why there is none."""
        maps_bytes = row["bytes"] - 4 * row["batch"] * row["side"] ** 2
        count = sets_to_rotate(maps_bytes, self.device.cache_bytes)
        # Beside the inputs: eager's product, and its map at several stages, once more in the pool of a graph.
        needed = count * maps_bytes + maps_bytes + 10 * 4 * row["batch"] * row["side"] ** 2
        free = self.device.free_bytes()
        if needed > 0.9 * free:
            row["missing"] = f"needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
            return
        shape = (row["batch"], row["channels"], row["rows"], row["columns"])
        sets = [self._maps(shape, row["dtype"]) for _ in range(count)]
        del row["missing"]
        row["input_sets"] = count
        size = (row["side"], row["side"])
        contenders: dict[str, Maps] = {
            "fused": lambda a, g: gradcam_fast.cam(a, g, size)[0],
            "eager": lambda a, g: eager(a, g, size),
        }
        expected = _reference(*sets[0], size)
        turns = {}
        for name in [*contenders, "compiled"]:
            try:
                if name == "fused" and self.no_kernel is not None:
                    raise NotMeasured(self.no_kernel)
                run = contenders[name] if name in contenders else self._compiled(sets[0], size)
                found = _apart(run(*sets[0]), expected)
                row["runs"][name] = {"apart": found if math.isfinite(found) else None}
                if name == "fused" and is_wrong(row):
                    raise NotMeasured(f"differs from the reference by {found:.1e}")
                turns[name] = self._turn(run, sets, in_cache=row["batch"] == 1)
            except Exception as error:
                row["runs"].setdefault(name, {})["missing"] = reason(error)
        for name, taken in by_turns(turns, share, whole).items():
            row["runs"][name].update(
                {"missing": reason(taken)} if isinstance(taken, Exception) else summary(taken, "us")
            )

    def _maps(self, shape: tuple[int, ...], dtype: str) -> tuple[Tensor, Tensor]:
        both = (torch.randn(shape, device=self.device.kind, dtype=getattr(torch, dtype)) for _ in range(2))
        activations, gradients = both
        return activations, gradients

    def _compiled(self, maps: tuple[Tensor, Tensor], size: tuple[int, int]) -> Maps:
        """torch.compile of eager for these shapes, compiled.

        Raises:
            NotMeasured: it cannot compile here, or the time set aside for compiling is spent.
        """
        if self.no_compiler is not None:
            raise NotMeasured(self.no_compiler)
        if self.compile_left <= 0:
            raise NotMeasured("the time set aside for torch.compile was up")
        # Else the ninth shape would quietly run the eager lines.
        torch.compiler.reset()
        run = torch.compile(eager, dynamic=False)
        start = time.monotonic()
        try:
            run(*maps, size)
        except Exception as error:
            self.no_compiler = f"torch.compile fails here: {reason(error)}"
            raise NotMeasured(self.no_compiler) from error
        finally:
            self.compile_left -= time.monotonic() - start
        return lambda activations, gradients: run(activations, gradients, size)

    def _turn(self, run: Maps, sets: list[tuple[Tensor, Tensor]], in_cache: bool) -> Callable[[], dict[str, float]]:
        """A turn of one contender: calls in a queue by the host's clock, and the replay of a graph by the device's."""
        device = self.device
        calls = rotation(sets, run)
        in_graph = len(sets) * -(-CALLS_IN_A_GRAPH // len(sets))
        graph = device.captured(lambda: calls(in_graph))
        cached = device.captured(lambda: rotation(sets[:1], run)(in_graph)) if in_cache else None
        graph()
        device.synchronize()
        start = time.perf_counter()
        calls(5)
        device.synchronize()
        queued = calls_for((time.perf_counter() - start) / 5, 0.01, 1000)
        replays = calls_for(device.seconds(graph, 1), 0.01, 50)

        def turn() -> dict[str, float]:
            device.synchronize()
            start = time.perf_counter()
            calls(queued)
            device.synchronize()
            taken = {"host": (time.perf_counter() - start) / queued}
            taken["device"] = device.seconds(graph, replays) / in_graph
            if cached is not None:
                cached()
                taken["in_cache"] = device.seconds(cached, replays) / in_graph
            return taken

        return turn


def _reference(activations: Tensor, gradients: Tensor, size: tuple[int, int], at_once: int = 32) -> Tensor:
    """In float64 and in parts, for it needs many times the memory of its inputs; rounded to float32 at the end."""
    parts = zip(activations.split(at_once), gradients.split(at_once), strict=True)
    return torch.cat([gradcam_fast.reference.cam(a.double(), g.double(), size)[0].float() for a, g in parts])


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found.float().view_as(expected) - expected).abs().max())
