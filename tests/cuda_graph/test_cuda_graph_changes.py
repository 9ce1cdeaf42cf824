"""A model that has changed is recorded anew, and what cannot be recorded is explained eagerly and says why.

Recorded by a stand-in, on a CPU.
"""

import warnings

import pytest
import torch
from support.fake_recorder import StandIn, graphed, recordings
from support.networks import ConvNet, Counting
from support.unchanged import unchanged
from test_cuda_graph import assert_same

import gradcam_fast
from gradcam_fast._cuda_graph.checks import CannotRecord


def recorded(model, images, recorder=StandIn, **choices):
    explainer = graphed(model, recorder, **choices)
    for _ in range(2):
        explainer(images, 1)
    assert recordings(explainer) == 1
    return explainer


def assert_right(explainer, images):
    assert_same(explainer(images, 1), gradcam_fast.explain(explainer.model, images, target=1))


@torch.no_grad()
def doubled(model):
    for parameter in model.parameters():
        parameter.mul_(2)


def test_values_written_into_the_weights_are_seen(images):
    explainer = recorded(ConvNet(), images)
    recorder = explainer._graphs._recorder
    for change in (doubled, lambda model: model.load_state_dict(ConvNet().state_dict())):
        before = explainer(images, 1).heatmap
        change(explainer.model)
        assert_right(explainer, images)
        assert not torch.equal(explainer(images, 1).heatmap, before)
    assert explainer._graphs._recorder is recorder and recordings(explainer) == 1


CHANGES = {
    "assigned": lambda model: model.load_state_dict(ConvNet().state_dict(), assign=True),
    "replaced parameter": lambda model: setattr(
        model.features[0], "weight", torch.nn.Parameter(torch.randn(8, 3, 3, 3))
    ),
    "replaced data": lambda model: setattr(model.head[-1].weight, "data", torch.randn(5, 48)),
    "replaced buffer": lambda model: setattr(model.features[1], "running_mean", torch.randn(8)),
    "replaced module": lambda model: setattr(model, "head", ConvNet(classes=7).head),
    "replaced layer": lambda model: setattr(model, "features", ConvNet().features),
    "replaced activation": lambda model: setattr(model.features, "2", torch.nn.Tanh().eval()),
    "added module": lambda model: model.head.append(torch.nn.Tanh().eval()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_new_memory_and_new_modules_are_recorded_anew(change, images):
    explainer = recorded(ConvNet(), images)
    recorder = explainer._graphs._recorder
    CHANGES[change](explainer.model)
    for _ in range(3):
        assert_right(explainer, images)
    assert explainer._graphs._recorder is not recorder and recordings(explainer) == 1


def test_another_precision_is_recorded_anew(images):
    explainer = recorded(ConvNet(), images)
    explainer.model.double()
    for _ in range(3):
        assert_right(explainer, images.double())
    assert recordings(explainer) == 1 and explainer(images.double(), 1).logits.dtype == torch.float64


def test_classes_that_a_new_head_has_can_be_asked_for(images):
    explainer = recorded(ConvNet(), images)
    explainer.model.head = ConvNet(classes=9).head
    for _ in range(2):
        assert torch.equal(explainer(images, 8).score, explainer.model(images)[:, 8])
    assert explainer._graphs._recorder.recordings[0].logits.shape == (3, 9)


def test_a_model_in_training_mode_is_explained_eagerly_until_it_is_not(images):
    explainer = recorded(ConvNet(), images)
    explainer.model.features[1].train()
    with unchanged(explainer.model), pytest.warns(RuntimeWarning, match=r"eagerly: module 'features.1' is in training"):
        found = explainer(images, 1)
    assert_same(found, gradcam_fast.explain(explainer.model, images, target=1))
    assert "training" in explainer.eager_because and recordings(explainer) == 0
    explainer.model.eval()
    assert_right(explainer, images)
    assert recordings(explainer) == 1 and explainer.eager_because is None


def test_hooks_run_in_every_call(images):
    explainer = recorded(ConvNet(), images)
    seen = []
    handle = explainer.model.features[0].register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(RuntimeWarning, match=r"'features.0' has a hook"):
        explainer(images, 1)
    seen.clear()
    for _ in range(3):
        explainer(images, 1)
    assert len(seen) == 3
    handle.remove()
    assert_right(explainer, images)
    assert recordings(explainer) == 1


class CountingInPlace(ConvNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


@pytest.mark.parametrize("model", [Counting, CountingInPlace])
def test_a_forward_that_counts_counts_every_call_once(model, images):
    explainer = graphed(model(), layer="features.3")
    with pytest.warns(RuntimeWarning, match="writes to its buffers"):
        for calls in range(1, 5):
            explainer(images, 1)
            assert explainer.model.seen == 3 * calls
    assert recordings(explainer) == 0


class Breaks(StandIn):
    def record(self, function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Refuses(Breaks):
    def record(self, function):
        raise CannotRecord("this cannot be")


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [(Breaks, "RuntimeError: operation not permitted when stream is capturing"), (Refuses, "this cannot be")],
)
def test_what_cannot_be_recorded_is_explained_eagerly_and_says_why_once(recorder, reason, images):
    explainer = graphed(ConvNet(), recorder)
    with unchanged(explainer.model), pytest.warns(RuntimeWarning) as told:
        for target in (1, 1, 2, 2):
            found = explainer(images, target)
            assert_same(found, gradcam_fast.explain(explainer.model, images, target=target))
    assert [str(each.message) for each in told] == [f"cuda_graph=True, but this runs eagerly: {reason}"]
    assert told[0].filename == __file__ and explainer.eager_because == reason


def test_on_the_cpu_explanations_are_eager_and_say_so_once(images):
    explainer = gradcam_fast.Explainer(ConvNet(), cuda_graph=True)
    with pytest.warns(RuntimeWarning, match="the images are on cpu, and only CUDA devices have CUDA graphs") as told:
        for _ in range(3):
            assert_right(explainer, images)
    assert len(told) == 1


def test_nobody_is_told_of_graphs_who_did_not_ask_for_them(images):
    explainer = gradcam_fast.Explainer(ConvNet())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(images)
    assert explainer._graphs is None


def test_inputs_that_cannot_be_compared_are_explained_eagerly(images):
    class Scaled(ConvNet):
        def forward(self, images, scales):
            return super().forward(images) * scales[0]

    explainer = graphed(Scaled())
    with pytest.warns(RuntimeWarning, match="cannot be compared"):
        found = [explainer((images, [scale]), 1) for scale in (1.0, 2.0, 1.0)]
    assert torch.equal(found[1].score, 2 * found[0].score) and torch.equal(found[2].score, found[0].score)


def test_an_error_of_the_model_is_the_callers_and_nothing_is_recorded(images):
    explainer = graphed(ConvNet())
    explainer(images)

    def fail(_):
        raise ZeroDivisionError("in the forward")

    explainer.model.at_head = fail
    with unchanged(explainer.model), pytest.raises(ZeroDivisionError):
        explainer(images)
    explainer.model.at_head = lambda _: None
    assert_same(explainer(images), gradcam_fast.explain(explainer.model, images))
    assert recordings(explainer) == 1
