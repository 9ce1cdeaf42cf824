"""The device that is measured: a CUDA device's events, graphs and memory; or the host, to try the program."""

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
        """Device time per run, from two events around ``times`` runs queued one behind the other."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / times

    def as_graph(self, run: Callable[[], Result]) -> Callable[[], Result]:
        """``run`` as a replay of one CUDA graph, which writes its result into the same memory each time."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # Around the capture as well: a capture that fails does not restore the current stream.
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

    def peak_bytes(self, run: Callable[[], Result]) -> tuple[Result, int]:
        """The result, and the peak of allocated tensor bytes during the run, above those allocated before."""
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
        """Return the cached memory that no tensor uses to the device."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Host:
    """The host in place of a GPU: all of the program runs, but its numbers mean nothing."""

    kind = "cpu"
    cache_bytes = 1 << 15

    def synchronize(self) -> None:
        pass

    def seconds(self, run: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times

    def as_graph(self, run: Callable[[], Result]) -> Callable[[], Result]:
        return run

    def peak_bytes(self, run: Callable[[], Result]) -> tuple[Result, int]:
        return run(), 0

    def free_bytes(self) -> int:
        return 1 << 28

    def release(self) -> None:
        pass


Device = Cuda | Host


def copy_bytes_per_second(device: Device, max_bytes: int = 1 << 32, seconds: float = 0.5) -> tuple[int, float]:
    """The size of one copy, and the median of bytes read plus bytes written per second over ``seconds`` of copies.

    The first half is not counted, because an idle device takes a while to reach its clock speed.
    """
    source = torch.randn(min(max_bytes, device.free_bytes() // 8) // 4, device=device.kind)
    target = torch.empty_like(source)
    seconds_taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end or len(seconds_taken) < 4:
        seconds_taken.append(device.seconds(lambda: target.copy_(source), 1))
    bytes_copied = source.numel() * source.element_size()
    return bytes_copied, 2 * bytes_copied / statistics.median(seconds_taken[len(seconds_taken) // 2 :])
