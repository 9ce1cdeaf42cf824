"""What only a GPU can show of `cuda_graph=True`: CUDA records the run, replays it, never waits, and recovers.

Skipped where there is no CUDA device. What a CPU can show is in the other tests of this folder.
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
def no_tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def replaying_explainer(model, **choices):
    """An explainer, and a function that calls it three times and returns the last explanation, which is a replay."""
    explainer = gradcam_fast.Explainer(model, cuda_graph=True, **choices)

    def replay(*args, **kwargs):
        for _ in range(3):
            explanation = explainer(*args, **kwargs)
        assert explainer.eager_because is None, explainer.eager_because
        return explanation

    return explainer, replay


def network(dtype=torch.float32):
    return ConvNet().cuda().to(dtype)


def batch_of(size, dtype=torch.float32):
    return torch.randn(size, 3, 64, 64, device="cuda", dtype=dtype)


def assert_close(explanation, expected, tolerance=TOLERANCE[torch.float32]):
    assert explanation.layer == expected.layer and torch.equal(explanation.valid, expected.valid)
    for name in ("heatmap", "logits", "score", "raw_min", "raw_max"):
        tensor, other = getattr(explanation, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(tensor, other, rtol=tolerance, atol=tolerance)
    assert (explanation.target is None) == (expected.target is None)
    assert explanation.target is None or torch.equal(explanation.target, expected.target)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("batch", [1, 3, 8, 9, 33])
def test_a_replay_agrees_with_an_eager_explanation(batch, targets):
    model = network()
    explainer, replay = replaying_explainer(model)
    for _ in range(2):
        images, arguments = batch_of(batch), TARGETS[targets](batch)
        assert_close(replay(images, **arguments), gradcam_fast.explain(model, images, **arguments))
    assert len(explainer._graphs._recordings) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_methods_dtypes_and_layouts(layout, dtype, method):
    model = network(dtype).to(memory_format=layout)
    images = batch_of(5, dtype).contiguous(memory_format=layout)
    _, replay = replaying_explainer(model, method=method, layer="features.3")
    expected = gradcam_fast.explain(model, images, target=1, method=method, layer="features.3")
    assert_close(replay(images, 1), expected, TOLERANCE[dtype])


def test_a_replay_never_waits_for_the_device():
    explainer, replay = replaying_explainer(network())
    images, classes = batch_of(9), torch.arange(9, device="cuda") % 5
    calls = ({}, {"target": 3}, {"target": classes}, {"topk": 2})
    for arguments in calls:
        replay(images, **arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for arguments in calls:
            explainer(images, **arguments)
            assert explainer.eager_because is None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_streams_wait_for_each_other():
    model = network()
    explainer, replay = replaying_explainer(model)
    batches = [batch_of(4) for _ in range(6)]
    expected = [gradcam_fast.explain(model, batch, target=1) for batch in batches]
    replay(batches[0], 1)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    explanations = []
    for index, batch in enumerate(batches):
        with torch.cuda.stream(streams[index % 2]):
            torch.cuda._sleep(20_000_000 * (index % 2 == 0))
            explanations.append(explainer(batch + 0, 1))
    torch.cuda.synchronize()
    for explanation, eager in zip(explanations, expected, strict=True):
        assert_close(explanation, eager)


def test_threads_with_streams_of_their_own():
    model = network()
    explainer, _ = replaying_explainer(model)
    batches = [batch_of(1 + index % 3) for index in range(24)]
    expected = [gradcam_fast.explain(model, batch, target=1) for batch in batches]
    torch.cuda.synchronize()

    def work(batch):
        with torch.cuda.stream(torch.cuda.Stream()):
            explanation = explainer(batch, 1)
            torch.cuda.current_stream().synchronize()
            return explanation

    with ThreadPoolExecutor(4) as pool:
        for explanation, eager in zip(pool.map(work, batches), expected, strict=True):
            assert_close(explanation, eager)


def test_two_hundred_replays_allocate_nothing_that_stays():
    images = [batch_of(size) for size in (9, 4, 1)]
    explainer, replay = replaying_explainer(network())
    for batch in images:
        replay(batch)
    allocated = set()
    for index in range(200):
        explainer(images[index % 3])
        torch.cuda.synchronize()
        allocated.add(torch.cuda.memory_allocated())
    assert len(allocated) == 1


def test_weights_written_in_place_take_effect_and_new_ones_are_recorded_anew():
    model = network()
    explainer, replay = replaying_explainer(model)
    images = batch_of(4)
    before = replay(images, 1).score
    recorder = explainer._graphs._recorder
    with torch.no_grad():
        model.head[-1].weight.mul_(2)
    explanation = explainer(images, 1)
    assert_close(explanation, gradcam_fast.explain(model, images, target=1))
    assert not torch.equal(explanation.score, before) and explainer._graphs._recorder is recorder
    model.load_state_dict(network().state_dict(), assign=True)
    torch.cuda.empty_cache()
    assert_close(explainer(images, 1), gradcam_fast.explain(model, images, target=1))
    assert explainer._graphs._recorder is not recorder
    model.half()
    images = images.half()
    assert_close(replay(images, 1), gradcam_fast.explain(model, images, target=1), TOLERANCE[torch.float16])


def test_autocast_is_recorded_without_its_cache():
    model = network()
    explainer, replay = replaying_explainer(model)
    images = batch_of(4)
    with torch.autocast("cuda", torch.bfloat16):
        assert replay(images, 1).logits.dtype == torch.bfloat16
    with torch.no_grad():
        model.head[-1].weight.mul_(2)
    with torch.autocast("cuda", torch.bfloat16):
        explanation, expected = explainer(images, 1), gradcam_fast.explain(model, images, target=1)
    assert_close(explanation, expected, TOLERANCE[torch.bfloat16])


def reads_a_value_on_the_host(logits):
    return logits * float(logits.abs().max() > 0)


def copies_numbers_to_the_device(logits):
    return logits * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], device=logits.device)


def synchronizes(logits):
    torch.cuda.synchronize()
    return logits


@pytest.mark.parametrize("wrap", [reads_a_value_on_the_host, copies_numbers_to_the_device, synchronizes])
def test_a_failed_recording_is_explained_eagerly_and_leaves_the_process_intact(wrap):
    model, images = Wrapped(wrap).cuda(), batch_of(4)
    explainer = gradcam_fast.Explainer(model, cuda_graph=True)
    stream, random_state = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    with pytest.warns(RuntimeWarning, match="runs eagerly") as caught:
        for _ in range(4):
            assert_close(explainer(images, 1), gradcam_fast.explain(model, images, target=1))
    assert len([warning for warning in caught if "runs eagerly" in str(warning.message)]) == 1
    assert torch.cuda.current_stream() == stream and not torch.cuda.is_current_stream_capturing()
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
    # Random numbers, memory and other recordings are as they were.
    assert torch.nn.functional.dropout(torch.ones(1000, device="cuda")).any()
    another, replay = replaying_explainer(network())
    assert_close(replay(images, 1), gradcam_fast.explain(another.model, images, target=1))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def test_inside_a_callers_own_capture_it_runs_eagerly():
    model, images = network(), batch_of(4)
    explainer, replay = replaying_explainer(model, layer="features.3")
    replay(images, 1)
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.cuda.graph(graph):
            explanation = explainer(images, torch.ones(4, dtype=torch.long, device="cuda"))
    graph.replay()
    assert_close(explanation, gradcam_fast.explain(model, images, target=1, layer="features.3"))


def test_random_numbers_are_those_of_an_eager_call():
    images, states = batch_of(4), []
    for cuda_graph in (False, True):
        torch.manual_seed(1)
        explainer = gradcam_fast.Explainer(network(), cuda_graph=cuda_graph)
        for _ in range(3):
            explainer(images, 1)
        states.append(torch.cuda.get_rng_state())
    assert torch.equal(*states)
