"""That the devices of runtime.cpp behave where a test would pass without it: run by ../test_cuda_on_host.py, there."""

import pytest
import torch

import gradcam_fast


@pytest.fixture
def graph():
    graph = torch.cuda.CUDAGraph()
    yield graph
    assert not torch.cuda.is_current_stream_capturing()


def test_what_is_captured_is_done_when_the_graph_is_launched(graph):
    numbers = torch.ones(3, device="cuda")
    with torch.cuda.graph(graph):
        numbers.mul_(2)
        doubled = numbers + 1
    assert numbers.tolist() == [1, 1, 1]
    for expected in (2, 4):
        graph.replay()
        assert numbers.tolist() == [expected] * 3 and doubled.tolist() == [expected + 1] * 3


def waits(numbers):
    return [
        torch.cuda.synchronize,
        torch.cuda.current_stream().synchronize,
        numbers.sum().item,
        numbers.nonzero,
        numbers.cpu,
        lambda: numbers[numbers > 0],
        lambda: torch.tensor([1.0], device="cuda"),
    ]


@pytest.mark.parametrize("which", range(7))
def test_what_waits_ends_a_capture(graph, which):
    numbers = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError), torch.cuda.graph(graph):
        waits(numbers)[which]()


@pytest.mark.parametrize("which", range(2, 7))
def test_what_waits_is_an_error_where_it_should_be(which):
    wait = waits(torch.ones(3, device="cuda"))[which]
    wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            wait()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_begins_as_something_else_than_zeros():
    assert torch.empty(2**22, device="cuda").isnan().all()


def test_maps_of_two_devices_are_refused():
    maps = torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match="cuda:1"):
        gradcam_fast.cam(maps.to("cuda:0"), maps.to("cuda:1"), 3)


def test_a_side_too_long_for_the_kernel_is_said_to_be():
    maps = torch.ones(1, 1, 1, 40_000, device="cuda")
    with pytest.raises(RuntimeError, match="are too large for the CUDA kernel"):
        gradcam_fast.cam(maps, maps, (1, 40_000))
