"""What only a GPU can show of `cuda_graph=True`: that CUDA records the run, replays it, never waits, and recovers.

Skipped where there is no CUDA device. Keys, padding, changes and threads without one are in test_cuda_graph.py.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.networks import ConvNet, Wrapped
from support.tolerances import ROUNDED_INPUTS

import gradcam_fast
from gradcam_fast.ops.arguments import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = {torch.float32: 1e-4} | ROUNDED_INPUTS
TARGETS = {
    "the highest": lambda batch: {},
    "topk": lambda batch: {"topk": 3},
    "an integer": lambda batch: {"target": 2},
    "a list": lambda batch: {"target": [index % 5 for index in range(batch)]},
    "several each": lambda batch: {"target": [[index % 5, 1] for index in range(batch)]},
    "on the device": lambda batch: {"target": torch.arange(batch, device="cuda") % 5},
}


@pytest.fixture(autouse=True)
def exact():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def graphed(model, **choices):
    """An explainer, and a function that asks it until it replays."""
    explainer = gradcam_fast.Explainer(model, cuda_graph=True, **choices)

    def ask(*question, **named):
        for _ in range(3):
            found = explainer(*question, **named)
        assert explainer.eager_because is None, explainer.eager_because
        return found

    return explainer, ask


def network(dtype=torch.float32):
    return ConvNet().cuda().to(dtype)


def batch_of(size, dtype=torch.float32):
    return torch.randn(size, 3, 64, 64, device="cuda", dtype=dtype)


def assert_close(found, expected, tolerance=TOLERANCE[torch.float32]):
    assert found.layer == expected.layer and torch.equal(found.valid, expected.valid)
    for name in ("heatmap", "logits", "score", "raw_min", "raw_max"):
        one, other = getattr(found, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert (found.target is None) == (expected.target is None)
    assert found.target is None or torch.equal(found.target, expected.target)


@pytest.mark.parametrize("asked", TARGETS)
@pytest.mark.parametrize("batch", [1, 3, 8, 9, 33])
def test_a_replay_agrees_with_an_eager_explanation(batch, asked):
    model = network()
    explainer, ask = graphed(model)
    for _ in range(2):
        images, question = batch_of(batch), TARGETS[asked](batch)
        assert_close(ask(images, **question), gradcam_fast.explain(model, images, **question))
    assert len(explainer._graphs._recordings) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_methods_dtypes_and_layouts(layout, dtype, method):
    model = network(dtype).to(memory_format=layout)
    images = batch_of(5, dtype).contiguous(memory_format=layout)
    _, ask = graphed(model, method=method, layer="features.3")
    expected = gradcam_fast.explain(model, images, target=1, method=method, layer="features.3")
    assert_close(ask(images, 1), expected, TOLERANCE[dtype])


def test_a_replay_never_waits_for_the_device():
    explainer, ask = graphed(network())
    images, chosen = batch_of(9), torch.arange(9, device="cuda") % 5
    questions = ({}, {"target": 3}, {"target": chosen}, {"topk": 2})
    for question in questions:
        ask(images, **question)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for question in questions:
            explainer(images, **question)
            assert explainer.eager_because is None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_streams_wait_for_each_other():
    model = network()
    explainer, ask = graphed(model)
    batches = [batch_of(4) for _ in range(6)]
    expected = [gradcam_fast.explain(model, batch, target=1) for batch in batches]
    ask(batches[0], 1)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for index, batch in enumerate(batches):
        with torch.cuda.stream(streams[index % 2]):
            torch.cuda._sleep(20_000_000 * (index % 2 == 0))
            found.append(explainer(batch + 0, 1))
    torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_threads_with_streams_of_their_own():
    model = network()
    explainer, _ = graphed(model)
    batches = [batch_of(1 + index % 3) for index in range(24)]
    expected = [gradcam_fast.explain(model, batch, target=1) for batch in batches]
    torch.cuda.synchronize()

    def work(batch):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = explainer(batch, 1)
            torch.cuda.current_stream().synchronize()
            return found

    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(work, batches), expected, strict=True):
            assert_close(one, other)


def test_two_hundred_replays_leave_not_a_byte_behind():
    images = [batch_of(size) for size in (9, 4, 1)]
    explainer, ask = graphed(network())
    for batch in images:
        ask(batch)
    allocated = set()
    for index in range(200):
        explainer(images[index % 3])
        torch.cuda.synchronize()
        allocated.add(torch.cuda.memory_allocated())
    assert len(allocated) == 1


def test_weights_written_in_place_are_seen_and_new_ones_are_recorded_anew():
    model = network()
    explainer, ask = graphed(model)
    images = batch_of(4)
    before = ask(images, 1).score
    recorder = explainer._graphs._recorder
    with torch.no_grad():
        model.head[-1].weight.mul_(2)
    found = explainer(images, 1)
    assert_close(found, gradcam_fast.explain(model, images, target=1))
    assert not torch.equal(found.score, before) and explainer._graphs._recorder is recorder
    model.load_state_dict(network().state_dict(), assign=True)
    torch.cuda.empty_cache()
    assert_close(explainer(images, 1), gradcam_fast.explain(model, images, target=1))
    assert explainer._graphs._recorder is not recorder
    model.half()
    images = images.half()
    assert_close(ask(images, 1), gradcam_fast.explain(model, images, target=1), TOLERANCE[torch.float16])


def test_autocast_is_recorded_without_its_cache():
    model = network()
    explainer, ask = graphed(model)
    images = batch_of(4)
    with torch.autocast("cuda", torch.bfloat16):
        assert ask(images, 1).logits.dtype == torch.bfloat16
    with torch.no_grad():
        model.head[-1].weight.mul_(2)
    with torch.autocast("cuda", torch.bfloat16):
        found, expected = explainer(images, 1), gradcam_fast.explain(model, images, target=1)
    assert_close(found, expected, TOLERANCE[torch.bfloat16])


def asks_the_device(logits):
    return logits * float(logits.abs().max() > 0)


def makes_a_tensor_of_numbers(logits):
    return logits * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], device=logits.device)


def waits_for_the_device(logits):
    torch.cuda.synchronize()
    return logits


@pytest.mark.parametrize("wrap", [asks_the_device, makes_a_tensor_of_numbers, waits_for_the_device])
def test_a_model_that_cannot_be_recorded_is_explained_eagerly_and_the_process_is_well(wrap):
    model, images = Wrapped(wrap).cuda(), batch_of(4)
    explainer = gradcam_fast.Explainer(model, cuda_graph=True)
    stream, random = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    with pytest.warns(RuntimeWarning, match="runs eagerly") as told:
        for _ in range(4):
            assert_close(explainer(images, 1), gradcam_fast.explain(model, images, target=1))
    assert len([each for each in told if "runs eagerly" in str(each.message)]) == 1
    assert torch.cuda.current_stream() == stream and not torch.cuda.is_current_stream_capturing()
    assert torch.equal(torch.cuda.get_rng_state(), random)
    # Random numbers, memory and other recordings are as they were.
    assert torch.nn.functional.dropout(torch.ones(1000, device="cuda")).any()
    well, ask = graphed(network())
    assert_close(ask(images, 1), gradcam_fast.explain(well.model, images, target=1))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_inside_a_callers_own_capture_it_runs_eagerly():
    model, images = network(), batch_of(4)
    explainer, ask = graphed(model, layer="features.3")
    ask(images, 1)
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.cuda.graph(graph):
            found = explainer(images, torch.ones(4, dtype=torch.long, device="cuda"))
    graph.replay()
    assert_close(found, gradcam_fast.explain(model, images, target=1, layer="features.3"))


def test_random_numbers_are_those_of_an_eager_call():
    images, states = batch_of(4), []
    for cuda_graph in (False, True):
        torch.manual_seed(1)
        explainer = gradcam_fast.Explainer(network(), cuda_graph=cuda_graph)
        for _ in range(3):
            explainer(images, 1)
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(*states)
