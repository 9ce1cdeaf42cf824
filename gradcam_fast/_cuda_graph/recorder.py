"""Recording what a function does on a CUDA device, and doing it again in one launch: streams, memory and failures.

Knows nothing of models or explanations. A function is recorded with the memory it was recorded on: what it reads must
be written there before a replay, what it returned is overwritten there by the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch

from .checks import rehearse

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["CudaRecorder", "Recorder"]

# Libraries set themselves up, and choose their algorithms, in the first runs; as many as PyTorch's own examples have.
_WARM_UPS = 3

# PyTorch allows one capture at a time in a process.
_CAPTURING = threading.Lock()


class Recorder(Protocol):
    """Records functions for one device, to be replayed one at a time."""

    def __init__(self, device: torch.device) -> None: ...

    @staticmethod
    def refuses(device: torch.device) -> str | None:
        """Why nothing can be recorded or replayed on this device now, or None."""

    def aside(self) -> AbstractContextManager[None]:
        """Where static memory is made, and ``record`` is called."""

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """What ``function`` returned, which lies still, and what fills it anew from what ``function`` read."""

    def turn(self) -> AbstractContextManager[None]:
        """Where static memory is written, replayed and read: after all turns before, whatever stream they were on."""

    def settle(self) -> None:
        """Wait until the last turn is over, so that memory can be given back."""


class CudaRecorder:
    """A :class:`Recorder` by CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # What is freed on a stream is used again on it: on these two no one else works. Not one for both, so that a
        # library's workspace is made in the capture, and with it lies in the graphs' own memory.
        self._side, self._capturing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        # Each with what it reads, which must not be given away while it may run.
        self._graphs: WeakKeyDictionary[torch.cuda.CUDAGraph, Any] = WeakKeyDictionary()
        self._over = torch.cuda.Event()
        self._stream: torch.cuda.Stream | None = None

    @staticmethod
    def refuses(device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"the images are on {device}, and only CUDA devices have CUDA graphs"
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return "it is itself being captured in a CUDA graph"
        return None

    @contextmanager
    def aside(self) -> Iterator[None]:
        callers = torch.cuda.current_stream(self.device)
        self._side.wait_stream(callers)
        try:
            # Turns the callers' stream on again after a failed capture, too, which leaves its own turned on.
            with torch.cuda.stream(self._side):
                yield
        finally:
            callers.wait_stream(self._side)

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        # The callers' random numbers shall be the same as without a recording.
        with torch.random.fork_rng([self.device]):
            for _ in range(_WARM_UPS - 1):
                function()
            # The last of them, when what the function keeps for the next run is there.
            reads = rehearse(function, self.device)
        graph = torch.cuda.CUDAGraph()
        # That of a graph that is still there: a pool cannot be used again after its last graph is gone.
        pool = next((each.pool() for each in list(self._graphs)), None) or torch.cuda.graph_pool_handle()
        failure: BaseException | None = None
        with _CAPTURING:
            try:
                # Other threads may go on working with the device, as they could not in the "global" mode.
                with torch.cuda.graph(graph, pool=pool, stream=self._capturing, capture_error_mode="thread_local"):
                    try:
                        output = function()
                    except BaseException as error:
                        failure = error
            except Exception as error:  # what a capture does not allow makes its end fail, too
                failure = failure or error
            if failure is not None:
                self._clear_away(graph, pool)
                raise failure
        self._graphs[graph] = reads
        return output, graph.replay

    def _clear_away(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """End what a failed capture has left behind, as the versions of PyTorch do in part."""
        # Before 2.13 the allocator would ask the lost graph for ever. Later ones say that there is nothing to end.
        with suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        graph.reset()
        # The generator may still think that it is captured, and then makes no random numbers.
        try:
            with torch.random.fork_rng([self.device]):
                torch.rand(1, device=self.device)
        except RuntimeError:
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())

    @contextmanager
    def turn(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None and self._stream != stream:
            stream.wait_event(self._over)
        try:
            yield
        finally:
            self._over.record(stream)
            self._stream = stream

    def settle(self) -> None:
        if self._stream is not None:
            self._over.synchronize()
