"""Which calls share a recording, which are explained eagerly and say why, and how many recordings are kept.

Recorded by the fake recorder, on a CPU.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.fake_recorder import FakeRecorder, assert_same_explanation, count_recordings, graph_explainer
from support.networks import ConvNet
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast._cuda_graph import cache
from gradcam_fast._cuda_graph.checks import CannotRecord


def test_a_call_is_recorded_when_its_key_comes_for_the_second_time(images):
    explainer = graph_explainer(ConvNet())
    explainer(images)
    assert count_recordings(explainer) == 0
    explainer(images, 1)
    explainer(images, topk=2)
    assert count_recordings(explainer) == 0
    explainer(torch.randn_like(images))
    assert count_recordings(explainer) == 1


def test_target_functions_are_told_apart_and_lambdas_are_not_recorded(images):
    def first(logits):
        return logits[:, 0]

    def second(logits):
        return logits[:, 1]

    explainer = graph_explainer(ConvNet())
    for target, column in [(first, 0), (second, 1)] * 3:
        assert torch.equal(
            explainer(images, target).score, gradcam_fast.explain(explainer.model, images).logits[:, column]
        )
    assert count_recordings(explainer) == 2
    for _ in range(5):
        explainer(images, lambda logits: logits[:, 2])
    assert count_recordings(explainer) == 2


def test_other_shapes_dtypes_and_layouts_have_recordings_of_their_own(images):
    explainer = graph_explainer(ConvNet())
    for batch in (images, images[..., :12], images.contiguous(memory_format=torch.channels_last)):
        for _ in range(2):
            assert_same_explanation(explainer(batch, 1), gradcam_fast.explain(explainer.model, batch, target=1))
    assert count_recordings(explainer) == 3


def test_autocast_is_part_of_the_key_and_grad_modes_are_not(images):
    explainer = graph_explainer(ConvNet())
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            low = explainer(images, 1)
        high = explainer(images, 1)
    assert low.logits.dtype == torch.bfloat16 and high.logits.dtype == torch.float32
    with torch.inference_mode():
        inside = explainer(images.clone(), 1)
    assert_same_explanation(inside, high)
    assert not inside.heatmap.is_inference() and not inside.heatmap.requires_grad and count_recordings(explainer) == 2


def test_the_least_recently_used_recording_is_dropped_first(images, monkeypatch):
    monkeypatch.setattr(cache, "MAX_RECORDINGS", 2)
    explainer = graph_explainer(ConvNet())
    for batch in (1, 1, 2, 2, 1, 3, 3):
        explainer(images[:batch])
    assert [key[0] for key in explainer._graphs._recordings] == [1, 3]
    assert_same_explanation(explainer(images[:2]), gradcam_fast.explain(explainer.model, images[:2]))


def test_threads_take_turns():
    explainer = graph_explainer(ConvNet())
    batches = [torch.randn(1 + index % 2, 3, 16, 16) for index in range(16)]
    expected = [gradcam_fast.explain(explainer.model, batch, target=index % 5) for index, batch in enumerate(batches)]
    with ThreadPoolExecutor(4) as pool:
        explanations = list(pool.map(explainer, batches, [index % 5 for index in range(16)]))
    for explanation, eager in zip(explanations, expected, strict=True):
        assert_same_explanation(explanation, eager)
    assert count_recordings(explainer) == 2


class FailingRecorder(FakeRecorder):
    def record(self, function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class RejectingRecorder(FakeRecorder):
    def record(self, function):
        raise CannotRecord("this cannot be")


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (FailingRecorder, "RuntimeError: operation not permitted when stream is capturing"),
        (RejectingRecorder, "this cannot be"),
    ],
)
def test_what_cannot_be_recorded_is_explained_eagerly_and_says_why_once(recorder, reason, images):
    explainer = graph_explainer(ConvNet(), recorder)
    with unchanged(explainer.model), pytest.warns(RuntimeWarning) as caught:
        for target in (1, 1, 2, 2):
            explanation = explainer(images, target)
            assert_same_explanation(explanation, gradcam_fast.explain(explainer.model, images, target=target))
    assert [str(warning.message) for warning in caught] == [f"cuda_graph=True, but this runs eagerly: {reason}"]
    assert caught[0].filename == __file__ and explainer.eager_because == reason


def test_on_the_cpu_explanations_are_eager_and_say_so_once(images):
    explainer = gradcam_fast.Explainer(ConvNet(), cuda_graph=True)
    with pytest.warns(RuntimeWarning, match="the images are on cpu, and only CUDA devices have CUDA graphs") as caught:
        for _ in range(3):
            expected = gradcam_fast.explain(explainer.model, images, target=1)
            assert_same_explanation(explainer(images, 1), expected)
    assert len(caught) == 1


def test_without_cuda_graph_there_is_no_cache_and_no_warning(images):
    explainer = gradcam_fast.Explainer(ConvNet())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(images)
    assert explainer._graphs is None


def test_inputs_that_cannot_be_compared_are_explained_eagerly(images):
    class Scaled(ConvNet):
        def forward(self, images, scales):
            return super().forward(images) * scales[0]

    explainer = graph_explainer(Scaled())
    with pytest.warns(RuntimeWarning, match="cannot be compared"):
        first, doubled, third = (explainer((images, [scale]), 1) for scale in (1.0, 2.0, 1.0))
    assert torch.equal(doubled.score, 2 * first.score) and torch.equal(third.score, first.score)


def test_an_error_of_the_model_is_raised_and_nothing_is_recorded(images):
    explainer = graph_explainer(ConvNet())
    explainer(images)

    def fail(_):
        raise ZeroDivisionError("in the forward")

    explainer.model.at_head = fail
    with unchanged(explainer.model), pytest.raises(ZeroDivisionError):
        explainer(images)
    explainer.model.at_head = lambda _: None
    assert_same_explanation(explainer(images), gradcam_fast.explain(explainer.model, images))
    assert count_recordings(explainer) == 1


class SeveralPictures(nn.Module):
    """Takes a clip or two images, or compares images with learned ones, on which the network runs last."""

    def __init__(self):
        super().__init__()
        self.model, self.learned = ConvNet(), nn.Parameter(torch.rand(2, 3, 16, 16))
        self.eval()

    def forward(self, images, other=None):
        if images.dim() == 5:
            return self.model(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
        return self.model(images) - self.model(self.learned if other is None else other).mean(0)


@pytest.mark.filterwarnings("ignore:cuda_graph=True")
@pytest.mark.parametrize("layer", ["model.features.3", None])
@pytest.mark.parametrize("kind", ["clip", "two images", "learned images"])
def test_where_the_model_is_asked_about_pictures_it_runs_eagerly(kind, layer, images):
    inputs = {"clip": images[:, None], "two images": (images, images[:2]), "learned images": images}[kind]
    explainer = graph_explainer(SeveralPictures(), layer=layer)
    for _ in range(3):
        explanation = explainer(inputs, 1)
        assert_same_explanation(explanation, gradcam_fast.explain(explainer.model, inputs, target=1, layer=layer))
    assert count_recordings(explainer) == 0 and "the host waits" in explainer.eager_because


def test_a_call_that_is_named_is_recorded(images):
    class Twice(ConvNet):
        def forward(self, images):
            return super().forward(images) + 2 * super().forward(images / 2)

    explainer = graph_explainer(Twice(), layer="features.3", call=0)
    for _ in range(3):
        explanation = explainer(images, 1)
        expected = gradcam_fast.explain(explainer.model, images, target=1, layer="features.3", call=0)
        assert_same_explanation(explanation, expected)
    assert count_recordings(explainer) == 1
