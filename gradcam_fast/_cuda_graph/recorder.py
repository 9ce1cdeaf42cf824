"""Records a function in a CUDA graph, to be run again in one launch: streams, memory, cleaning up after failures.

A recording works on fixed addresses, the static memory: inputs must be written there before a replay, and every replay
overwrites the outputs there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch

from .checks import dry_run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["CudaRecorder", "Recorder"]

# The first runs initialise libraries and choose algorithms. PyTorch's own examples use the same number.
_WARM_UP_RUNS = 3

# PyTorch allows one capture at a time in a process.
_CAPTURE_LOCK = threading.Lock()


class Recorder(Protocol):
    """Records functions on one device; one recording is replayed at a time."""

    def __init__(self, device: torch.device) -> None: ...

    @staticmethod
    def unavailable_because(device: torch.device) -> str | None:
        """Why nothing can be recorded or replayed on this device now; None if it can."""

    def side_stream(self) -> AbstractContextManager[None]:
        """Run the block on a stream of the recorder: static memory is allocated and ``record`` is called there."""

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The output of ``function``, in static memory, and the replay, which computes that output again."""

    def exclusive_use(self) -> AbstractContextManager[None]:
        """Write, replay and read static memory in the block: it runs after all earlier uses, on whatever stream."""

    def wait_for_last_use(self) -> None:
        """Make the host wait for the last use of static memory, so that the memory can be freed."""


class CudaRecorder:
    """A :class:`Recorder` by CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Only the recorder uses these streams, so no other work reuses memory that was freed on them. There are two,
        # because a library's workspace belongs to one stream: the capture's own workspace must be allocated during the
        # capture, in the graphs' pool.
        self._side_stream, self._capture_stream = torch.cuda.Stream(device), torch.cuda.Stream(device)
        # Each graph with the storages it reads, which must stay allocated while it may run.
        self._graphs: WeakKeyDictionary[torch.cuda.CUDAGraph, Any] = WeakKeyDictionary()
        self._last_use_finished = torch.cuda.Event()
        self._last_use_stream: torch.cuda.Stream | None = None

    @staticmethod
    def unavailable_because(device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"the images are on {device}, and only CUDA devices have CUDA graphs"
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return "the call itself is being captured in a CUDA graph"
        return None

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        callers_stream = torch.cuda.current_stream(self.device)
        self._side_stream.wait_stream(callers_stream)
        try:
            # Restores the caller's stream also after a failed capture, which leaves its own stream current.
            with torch.cuda.stream(self._side_stream):
                yield
        finally:
            callers_stream.wait_stream(self._side_stream)

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        # The caller's random numbers must be the same as without a recording.
        with torch.random.fork_rng([self.device]):
            for _ in range(_WARM_UP_RUNS - 1):
                function()
            # The dry run is the last one, when everything that the function caches between runs exists.
            storages_read = dry_run(function, self.device)
        graph = torch.cuda.CUDAGraph()
        # Share the pool of a graph that still exists: a pool cannot be used again after its last graph is gone.
        pool = next((other.pool() for other in list(self._graphs)), None) or torch.cuda.graph_pool_handle()
        failure: BaseException | None = None
        with _CAPTURE_LOCK:
            try:
                # "thread_local": other threads may go on using the device, which the "global" mode forbids.
                with torch.cuda.graph(graph, pool=pool, stream=self._capture_stream, capture_error_mode="thread_local"):
                    try:
                        output = function()
                    except BaseException as error:
                        failure = error
            except Exception as error:  # an operation that a capture forbids also makes the end of the capture fail
                failure = failure or error
            if failure is not None:
                self._clean_up_failed_capture(graph, pool)
                raise failure
        self._graphs[graph] = storages_read
        return output, graph.replay

    def _clean_up_failed_capture(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """Undo the changes that a failed capture has left in PyTorch's allocator and random generator."""
        # Before PyTorch 2.13 the allocator would still allocate for the lost graph. Later versions raise here, because
        # they have ended that themselves.
        with suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        graph.reset()
        # The random generator may still be in its capture state, and then refuses to make numbers.
        try:
            with torch.random.fork_rng([self.device]):
                torch.rand(1, device=self.device)
        except RuntimeError:
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())

    @contextmanager
    def exclusive_use(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self.device)
        if self._last_use_stream is not None and self._last_use_stream != stream:
            stream.wait_event(self._last_use_finished)
        try:
            yield
        finally:
            self._last_use_finished.record(stream)
            self._last_use_stream = stream

    def wait_for_last_use(self) -> None:
        if self._last_use_stream is not None:
            self._last_use_finished.synchronize()
