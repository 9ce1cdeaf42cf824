"""Explanations from a recording are those that are made eagerly: targets, batches, containers, modes, threads.

Recorded by a stand-in, on a CPU; what only CUDA can show is in test_gpu_graph.py.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.fake_recorder import graphed, recordings, replays, tensors
from support.networks import ConvNet, LogitsAndFeatures, TwoInputs, Wrapped
from support.unchanged import unchanged

import gradcam_fast
from gradcam_fast._capture.scores import pick_logits
from gradcam_fast._cuda_graph import cache
from gradcam_fast.ops.arguments import METHODS

TARGETS = {
    "the highest": ({}, {}),
    "topk": ({"topk": 3}, {"topk": 3}),
    "an integer": ({"target": 1}, {"target": 4}),
    "a list": ({"target": [0, 1, 2]}, {"target": [4, 4, 0]}),
    "a tensor": ({"target": torch.tensor([0, 1, 2])}, {"target": torch.tensor([3, 0, 1])}),
    "several each": ({"target": torch.tensor([[0, 1]] * 3)}, {"target": [[2, 3], [4, 0], [1, 1]]}),
}


def assert_same(found, expected):
    assert found.layer == expected.layer and type(found.logits) is type(expected.logits)
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert [one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs] == [True] * len(pairs)


def assert_close(found, expected):
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("asked", TARGETS)
def test_a_replay_answers_what_an_eager_call_does(asked, images):
    model, other = ConvNet(), torch.randn(3, 3, 16, 16)
    first, second = TARGETS[asked]
    explainer, eager = graphed(model), gradcam_fast.Explainer(model)
    with unchanged(model):
        for batch, question in [(images, first), (images, second), (other, first), (other, second)]:
            assert_same(explainer(batch, **question), eager(batch, **question))
    assert recordings(explainer) == 1 and replays(explainer) == 3
    assert explainer.eager_because is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["features.3", ["features.0", "features.3"]])
def test_the_choices_are_those_of_the_explainer(layer, method, images):
    choices = {"layer": layer, "method": method, "size": (20, 24), "relu": False, "normalize": "none"}
    explainer = graphed(ConvNet(), **choices)
    for _ in range(3):
        found = explainer(images, 2)
    assert_same(found, gradcam_fast.explain(explainer.model, images, target=2, **choices))


def test_a_call_is_recorded_when_its_like_comes_again(images):
    explainer = graphed(ConvNet())
    explainer(images)
    assert recordings(explainer) == 0
    explainer(images, 1)
    explainer(images, topk=2)
    assert recordings(explainer) == 0
    explainer(torch.randn_like(images))
    assert recordings(explainer) == 1


def test_what_was_returned_is_the_callers_to_keep(images):
    explainer = graphed(ConvNet())
    for _ in range(2):
        kept = explainer(images, 1)
    before = [each.clone() for each in tensors(kept)]
    other = explainer(torch.randn_like(images), 2)
    assert not torch.equal(other.heatmap, kept.heatmap)
    assert all(map(torch.equal, tensors(kept), before))


def test_a_class_that_does_not_exist_is_refused_as_it_is_eagerly(images):
    explainer = graphed(ConvNet())
    for target in (1, 1, [0, 1, 2]):
        explainer(images, target)
    for target in (5, [0, 5, 1]):
        with pytest.raises(ValueError, match="target 5 is out of range for a model with 5 classes"):
            explainer(images, target)
    with pytest.raises(ValueError, match="topk=6 exceeds"):
        [explainer(images, topk=6) for _ in range(2)]
    assert_same(explainer(images, 1), gradcam_fast.explain(explainer.model, images, target=1))


def test_batches_of_some_sizes_share_a_recording_without_a_trace_of_each_other():
    explainer, images = graphed(ConvNet()), torch.randn(10, 3, 16, 16)
    eager = gradcam_fast.Explainer(explainer.model)
    for batch in (10, 9, 10, 9):
        assert_close(explainer(images[:batch], 1), eager(images[:batch], 1))
        assert_close(explainer(images[:batch], topk=2), eager(images[:batch], topk=2))
    assert recordings(explainer) == 2
    (replay,) = (each for each in explainer._graphs._recordings.values() if each.request.topk is None)
    assert torch.equal(replay.request.images[:9], images[:9]) and not replay.request.images[9:].any()


def test_a_target_of_fewer_images_leaves_none_behind():
    explainer, images = graphed(ConvNet()), torch.randn(10, 3, 16, 16)
    for target in ([4] * 10, [3] * 10, [2] * 9):
        found = explainer(images[: len(target)], target)
    assert_close(found, gradcam_fast.explain(explainer.model, images[:9], target=2))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_small_batches_are_not_padded(batch):
    explainer, images = graphed(ConvNet()), torch.randn(batch, 3, 16, 16)
    for _ in range(2):
        found = explainer(images)
    assert explainer._graphs._recorder.recordings[0].heatmap.shape[0] == batch
    assert_same(found, gradcam_fast.explain(explainer.model, images))


def test_where_images_are_mixed_no_batch_is_padded():
    model, images = ConvNet(), torch.randn(10, 3, 16, 16)
    model.features[1] = torch.nn.BatchNorm2d(8, track_running_stats=False).eval()
    explainer = graphed(model, layer="features.3")
    for batch in (9, 9, 10, 10, 9):
        found = explainer(images[:batch], 1)
        assert_same(found, gradcam_fast.explain(model, images[:batch], target=1, layer="features.3"))
    assert explainer.eager_because is None


@pytest.mark.parametrize(
    "wrap",
    [lambda out: {"out": out}, lambda out: (out,), lambda out: LogitsAndFeatures(out, out[:, :2] * 2)],
    ids=["dict", "tuple", "namedtuple"],
)
def test_whatever_the_model_returns_is_cut_and_copied(wrap):
    def first(output):
        return pick_logits(output, None)[:, 0]

    model, images = Wrapped(wrap), torch.randn(9, 3, 16, 16)
    explainer = graphed(model)
    for target in (first, 2):
        for _ in range(3):
            assert_close(explainer(images, target), gradcam_fast.explain(model, images, target=target))
    assert recordings(explainer) == 2


def test_functions_are_told_apart_and_those_written_in_place_are_not_recorded(images):
    def first(logits):
        return logits[:, 0]

    def second(logits):
        return logits[:, 1]

    explainer = graphed(ConvNet())
    for target, column in [(first, 0), (second, 1)] * 3:
        assert torch.equal(
            explainer(images, target).score, gradcam_fast.explain(explainer.model, images).logits[:, column]
        )
    assert recordings(explainer) == 2
    for _ in range(5):
        explainer(images, lambda logits: logits[:, 2])
    assert recordings(explainer) == 2


def test_several_inputs_are_all_filled_anew(images):
    explainer = graphed(TwoInputs(), layer="features.3")
    for shift in (torch.ones(3), torch.ones(3), torch.tensor([1.0, -2.0, 0.5])):
        found = explainer((images, shift), 1)
        assert_same(found, gradcam_fast.explain(explainer.model, (images, shift), target=1, layer="features.3"))
    assert recordings(explainer) == 1


def test_other_shapes_dtypes_and_layouts_have_recordings_of_their_own(images):
    explainer = graphed(ConvNet())
    for batch in (images, images[..., :12], images.contiguous(memory_format=torch.channels_last)):
        for _ in range(2):
            assert_same(explainer(batch, 1), gradcam_fast.explain(explainer.model, batch, target=1))
    assert recordings(explainer) == 3


def test_a_single_image_and_an_empty_batch(images):
    explainer = graphed(ConvNet())
    for batch in (images[0], images[:1], images[:0], images[:0]):
        found = explainer(batch)
        assert len(found.heatmap) == (batch.dim() == 3 or len(batch))
    assert recordings(explainer) == 1 and explainer.eager_because is None


def test_autocast_is_part_of_the_question_and_grad_modes_are_not(images):
    explainer = graphed(ConvNet())
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            low = explainer(images, 1)
        high = explainer(images, 1)
    assert low.logits.dtype == torch.bfloat16 and high.logits.dtype == torch.float32
    with torch.inference_mode():
        inside = explainer(images.clone(), 1)
    assert_same(inside, high)
    assert not inside.heatmap.is_inference() and not inside.heatmap.requires_grad and recordings(explainer) == 2


def test_nothing_is_recorded_of_weights_that_autocast_has_kept(images):
    explainer, kept = graphed(ConvNet()), []
    explainer.model.at_start = lambda _: kept.append(torch.is_autocast_cache_enabled())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            explainer(images, 1)
    assert kept[0] and kept[-2:] == [False, False]


def test_the_recordings_used_longest_ago_make_room(images, monkeypatch):
    monkeypatch.setattr(cache, "MAX_RECORDINGS", 2)
    explainer = graphed(ConvNet())
    for batch in (1, 1, 2, 2, 1, 3, 3):
        explainer(images[:batch])
    assert [key[0] for key in explainer._graphs._recordings] == [1, 3]
    assert_same(explainer(images[:2]), gradcam_fast.explain(explainer.model, images[:2]))


def test_threads_take_turns():
    explainer = graphed(ConvNet())
    batches = [torch.randn(1 + index % 2, 3, 16, 16) for index in range(16)]
    expected = [gradcam_fast.explain(explainer.model, batch, target=index % 5) for index, batch in enumerate(batches)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(explainer, batches, [index % 5 for index in range(16)]))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert recordings(explainer) == 2
