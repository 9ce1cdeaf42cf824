"""What is timed on: a CUDA device's events, graphs and memory, and the host in its place when the program is tried.

Knows nothing of heatmaps and of what the times mean.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Cuda:
    """The current CUDA device."""

    kind = "cuda"

    def __init__(self) -> None:
        self.properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes = self.properties.L2_cache_size

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], times: int) -> float:
        """Device time of one of ``times`` runs queued one behind the other, between two events."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / times

    def captured(self, run: Callable[[], Result]) -> Callable[[], Result]:
        """``run`` as the replay of one graph; its result lies in the same memory each time."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # Around the capture as well: one that fails does not put the current stream back.
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
            with torch.cuda.graph(graph, stream=stream):
                result = run()
        torch.cuda.current_stream().wait_stream(stream)

        def replay() -> Result:
            graph.replay()
            return result

        return replay

    def peak(self, run: Callable[[], Result]) -> tuple[Result, int]:
        """The result, and the most bytes of tensors there were meanwhile above those there were before."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        self.release()
        return torch.cuda.mem_get_info()[0]

    def release(self) -> None:
        """Give back what no tensor uses."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Host:
    """The host in a device's place: every path of the program runs, and no number means anything."""

    kind = "cpu"
    cache_bytes = 1 << 15

    def synchronize(self) -> None:
        pass

    def seconds(self, run: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times

    def captured(self, run: Callable[[], Result]) -> Callable[[], Result]:
        return run

    def peak(self, run: Callable[[], Result]) -> tuple[Result, int]:
        return run(), 0

    def free_bytes(self) -> int:
        return 1 << 28

    def release(self) -> None:
        pass


Device = Cuda | Host


def copy_bytes_per_second(device: Device, most_bytes: int = 1 << 32, seconds: float = 0.5) -> tuple[int, float]:
    """The size of one copy in bytes, and bytes read plus bytes written per second: the median of ``seconds`` of copies.

    Those of the first half do not count: a device that was idle takes a while to reach its clocks.
    """
    source = torch.randn(min(most_bytes, device.free_bytes() // 8) // 4, device=device.kind)
    target = torch.empty_like(source)
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end or len(taken) < 4:
        taken.append(device.seconds(lambda: target.copy_(source), 1))
    bytes_copied = source.numel() * source.element_size()
    return bytes_copied, 2 * bytes_copied / statistics.median(taken[len(taken) // 2 :])
