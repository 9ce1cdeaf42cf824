"""A replayed explanation equals the eager one: targets, batch sizes, padding, containers, inputs.

Recorded by the fake recorder, on a CPU; what only CUDA can show is in test_recorder.py.
"""

import pytest
import torch
from support.fake_recorder import (
    assert_same_explanation,
    count_recordings,
    count_replays,
    explanation_tensors,
    graph_explainer,
)
from support.networks import ConvNet, LogitsAndFeatures, TwoInputs, Wrapped
from support.unchanged import unchanged

import gradcam_fast
from gradcam_fast._capture.scores import pick_logits
from gradcam_fast.ops.arguments import METHODS

TARGETS = {
    "the highest": ({}, {}),
    "topk": ({"topk": 3}, {"topk": 3}),
    "an integer": ({"target": 1}, {"target": 4}),
    "a list": ({"target": [0, 1, 2]}, {"target": [4, 4, 0]}),
    "a tensor": ({"target": torch.tensor([0, 1, 2])}, {"target": torch.tensor([3, 0, 1])}),
    "several each": ({"target": torch.tensor([[0, 1]] * 3)}, {"target": [[2, 3], [4, 0], [1, 1]]}),
}


def assert_close(explanation, expected):
    for tensor, other in zip(explanation_tensors(explanation), explanation_tensors(expected), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_replay_gives_the_eager_explanation(targets, images):
    model, other = ConvNet(), torch.randn(3, 3, 16, 16)
    first, second = TARGETS[targets]
    explainer, eager = graph_explainer(model), gradcam_fast.Explainer(model)
    with unchanged(model):
        for batch, arguments in [(images, first), (images, second), (other, first), (other, second)]:
            assert_same_explanation(explainer(batch, **arguments), eager(batch, **arguments))
    assert count_recordings(explainer) == 1 and count_replays(explainer) == 3
    assert explainer.eager_because is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["features.3", ["features.0", "features.3"]])
def test_a_replay_uses_the_choices_of_the_explainer(layer, method, images):
    choices = {"layer": layer, "method": method, "size": (20, 24), "relu": False, "normalize": "none"}
    explainer = graph_explainer(ConvNet(), **choices)
    for _ in range(3):
        explanation = explainer(images, 2)
    assert_same_explanation(explanation, gradcam_fast.explain(explainer.model, images, target=2, **choices))


def test_the_next_replay_does_not_overwrite_a_returned_explanation(images):
    explainer = graph_explainer(ConvNet())
    for _ in range(2):
        returned = explainer(images, 1)
    before = [tensor.clone() for tensor in explanation_tensors(returned)]
    other = explainer(torch.randn_like(images), 2)
    assert not torch.equal(other.heatmap, returned.heatmap)
    assert all(map(torch.equal, explanation_tensors(returned), before))


def test_a_class_that_does_not_exist_raises_the_eager_error(images):
    explainer = graph_explainer(ConvNet())
    for target in (1, 1, [0, 1, 2]):
        explainer(images, target)
    for target in (5, [0, 5, 1]):
        with pytest.raises(ValueError, match="target 5 is out of range for a model with 5 classes"):
            explainer(images, target)
    with pytest.raises(ValueError, match="topk=6 exceeds"):
        [explainer(images, topk=6) for _ in range(2)]
    assert_same_explanation(explainer(images, 1), gradcam_fast.explain(explainer.model, images, target=1))


def test_padded_batch_sizes_share_a_recording_and_leave_nothing_behind():
    explainer, images = graph_explainer(ConvNet()), torch.randn(10, 3, 16, 16)
    eager = gradcam_fast.Explainer(explainer.model)
    for batch in (10, 9, 10, 9):
        assert_close(explainer(images[:batch], 1), eager(images[:batch], 1))
        assert_close(explainer(images[:batch], topk=2), eager(images[:batch], topk=2))
    assert count_recordings(explainer) == 2
    static_requests = [recording.static_request for recording in explainer._graphs._recordings.values()]
    (static_images,) = (request.images for request in static_requests if request.topk is None)
    assert torch.equal(static_images[:9], images[:9]) and not static_images[9:].any()


def test_targets_of_a_larger_batch_leave_nothing_behind():
    explainer, images = graph_explainer(ConvNet()), torch.randn(10, 3, 16, 16)
    for target in ([4] * 10, [3] * 10, [2] * 9):
        explanation = explainer(images[: len(target)], target)
    assert_close(explanation, gradcam_fast.explain(explainer.model, images[:9], target=2))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_small_batches_are_not_padded(batch):
    explainer, images = graph_explainer(ConvNet()), torch.randn(batch, 3, 16, 16)
    for _ in range(2):
        explanation = explainer(images)
    assert explainer._graphs._recorder.recordings[0].heatmap.shape[0] == batch
    assert_same_explanation(explanation, gradcam_fast.explain(explainer.model, images))


def test_a_model_that_mixes_images_is_never_padded():
    model, images = ConvNet(), torch.randn(10, 3, 16, 16)
    model.features[1] = torch.nn.BatchNorm2d(8, track_running_stats=False).eval()
    explainer = graph_explainer(model, layer="features.3")
    for batch in (9, 9, 10, 10, 9):
        explanation = explainer(images[:batch], 1)
        assert_same_explanation(explanation, gradcam_fast.explain(model, images[:batch], target=1, layer="features.3"))
    assert explainer.eager_because is None


@pytest.mark.parametrize(
    "wrap",
    [lambda out: {"out": out}, lambda out: (out,), lambda out: LogitsAndFeatures(out, out[:, :2] * 2)],
    ids=["dict", "tuple", "namedtuple"],
)
def test_logits_in_any_container_are_cut_and_copied(wrap):
    def first(output):
        return pick_logits(output, None)[:, 0]

    model, images = Wrapped(wrap), torch.randn(9, 3, 16, 16)
    explainer = graph_explainer(model)
    for target in (first, 2):
        for _ in range(3):
            assert_close(explainer(images, target), gradcam_fast.explain(model, images, target=target))
    assert count_recordings(explainer) == 2


def test_all_of_several_inputs_are_copied_in(images):
    explainer = graph_explainer(TwoInputs(), layer="features.3")
    for shift in (torch.ones(3), torch.ones(3), torch.tensor([1.0, -2.0, 0.5])):
        explanation = explainer((images, shift), 1)
        assert_same_explanation(
            explanation, gradcam_fast.explain(explainer.model, (images, shift), target=1, layer="features.3")
        )
    assert count_recordings(explainer) == 1


def test_a_single_image_and_an_empty_batch(images):
    explainer = graph_explainer(ConvNet())
    for batch in (images[0], images[:1], images[:0], images[:0]):
        explanation = explainer(batch)
        assert len(explanation.heatmap) == (batch.dim() == 3 or len(batch))
    assert count_recordings(explainer) == 1 and explainer.eager_because is None


def test_a_recording_does_not_use_the_autocast_cache(images):
    explainer, cache_enabled = graph_explainer(ConvNet()), []
    explainer.model.at_start = lambda _: cache_enabled.append(torch.is_autocast_cache_enabled())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            explainer(images, 1)
    assert cache_enabled[0] and cache_enabled[-2:] == [False, False]
