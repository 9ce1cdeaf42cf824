"""The fake devices refuse and delay what real ones do; run by test_fake_cuda.py in a process with fake devices."""

import pytest
import torch

import gradcam_fast


@pytest.fixture
def graph():
    graph = torch.cuda.CUDAGraph()
    yield graph
    assert not torch.cuda.is_current_stream_capturing()


def test_captured_work_is_done_when_the_graph_is_replayed(graph):
    numbers = torch.ones(3, device="cuda")
    with torch.cuda.graph(graph):
        numbers.mul_(2)
        doubled = numbers + 1
    assert numbers.tolist() == [1, 1, 1]
    for expected in (2, 4):
        graph.replay()
        assert numbers.tolist() == [expected] * 3 and doubled.tolist() == [expected + 1] * 3


def write_where_positive(numbers):
    numbers[numbers > 0] = torch.zeros(3, device="cuda")


READS = {
    "item": lambda numbers: numbers.sum().item(),
    "nonzero": torch.nonzero,
    "unique": torch.unique_consecutive,
    "to the host": torch.Tensor.cpu,
    "by a mask": lambda numbers: numbers[numbers > 0],
    "to a mask": write_where_positive,
    "from the host": lambda numbers: torch.tensor([1.0], device="cuda"),
}
WAITS = {
    "for the device": lambda numbers: torch.cuda.synchronize(),
    "for the stream": lambda numbers: torch.cuda.current_stream().synchronize(),
    "to the device from memory that is not pinned": lambda numbers: torch.ones(3).to("cuda", non_blocking=True),
}


@pytest.mark.parametrize("wait", READS | WAITS)
def test_a_wait_or_an_unpinned_copy_ends_a_capture(graph, wait):
    numbers = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError), torch.cuda.graph(graph):
        (READS | WAITS)[wait](numbers)


@pytest.mark.parametrize("wait", READS)
def test_a_wait_raises_in_sync_debug_mode(wait):
    numbers = torch.ones(3, device="cuda")
    READS[wait](numbers)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            READS[wait](numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_stream_that_is_not_joined_ends_a_capture(graph):
    numbers, other = torch.ones(3, device="cuda"), torch.cuda.Stream()
    with pytest.raises(RuntimeError, match="unjoined"), torch.cuda.graph(graph):
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            numbers.add_(1)


def test_a_stream_that_is_joined_is_captured(graph):
    numbers, other = torch.ones(3, device="cuda"), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            numbers.add_(1)
        torch.cuda.current_stream().wait_stream(other)
    graph.replay()
    assert numbers.tolist() == [2, 2, 2]


def test_work_after_the_join_is_not_joined(graph):
    numbers, other = torch.ones(3, device="cuda"), torch.cuda.Stream()
    with pytest.raises(RuntimeError, match="unjoined"), torch.cuda.graph(graph):
        other.wait_stream(torch.cuda.current_stream())
        torch.cuda.current_stream().wait_stream(other)
        with torch.cuda.stream(other):
            numbers.add_(1)


def test_waiting_for_uncaptured_work_ends_a_capture(graph):
    other = torch.cuda.Stream()
    with pytest.raises(RuntimeError), torch.cuda.graph(graph):
        torch.cuda.current_stream().wait_event(other.record_event())


def test_memory_starts_as_nan():
    assert torch.empty(2**22, device="cuda").isnan().all()


def test_maps_of_two_devices_are_refused():
    maps = torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match="cuda:1"):
        gradcam_fast.cam(maps.to("cuda:0"), maps.to("cuda:1"), 3)


def test_too_many_targets_for_one_launch_are_refused():
    maps = torch.ones(1, 1, 1, 1, device="cuda")
    with pytest.raises(RuntimeError, match="are too many for one launch"):
        torch.ops.gradcam_fast.cam(maps, maps[:, None].expand(1, 2**32, 1, 1, 1), 1, 1, 0, 0, True)


def test_a_side_too_long_for_the_kernel_is_refused():
    maps = torch.ones(1, 1, 1, 40_000, device="cuda")
    with pytest.raises(RuntimeError, match="are too large for the CUDA kernel"):
        gradcam_fast.cam(maps, maps, (1, 40_000))
