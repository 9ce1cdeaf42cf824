"""The dry run rejects what a capture cannot hold, and the model's fingerprint notices every change of a model.

On a CPU the host never waits for the device, but runs the same operations as if it did. PyTorch's meta device takes the
place of a second device. Explanations are recorded by the fake recorder.
"""

import pytest
import torch
from support.fake_recorder import FakeRecorder, assert_same_explanation, count_recordings, graph_explainer
from support.networks import ConvNet, Counting
from support.unchanged import unchanged

import gradcam_fast
from gradcam_fast._cuda_graph.checks import CannotRecord, dry_run

CPU = torch.device("cpu")
MAPS = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda: MAPS.sum().item(), "_local_scalar_dense"),
        (lambda: 1 if MAPS.any() else 0, "_local_scalar_dense"),
        (lambda: torch.equal(MAPS, MAPS), "equal"),
        (lambda: MAPS.nonzero(), "nonzero"),
        (lambda: MAPS[MAPS > 0], "index"),
        (lambda: MAPS.clone().index_put_((MAPS > 0,), MAPS[0, 0]), "index_put_"),
        (lambda: MAPS.unique(), "unique"),
    ],
)
def test_host_syncs_are_rejected(function, operation):
    with pytest.raises(CannotRecord, match=rf"aten\._?{operation}\d?\.\w+ makes the host wait for the device"):
        dry_run(function, CPU)


@pytest.mark.parametrize("copy", [lambda: MAPS.to("meta"), lambda: torch.empty(2, 3, device="meta").copy_(MAPS)])
def test_copies_between_host_and_device_are_rejected(copy):
    with pytest.raises(CannotRecord, match="from cpu to meta in every run"):
        dry_run(copy, torch.device("meta"))


def test_reading_a_host_tensor_on_the_host_is_allowed():
    values = []
    dry_run(lambda: values.append(MAPS.sum().item()), torch.device("meta"))
    assert values == [6.0]


def test_a_rejection_in_a_batched_backward_does_not_fall_back_to_one_target_at_a_time(images):
    class SyncInBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits * 2

        @staticmethod
        def backward(ctx, gradient):
            assert gradient.sum().item() is not None
            return gradient * 2

    model = ConvNet()
    model.head.append(torch.nn.Identity())
    model.head[-1].forward = SyncInBackward.apply
    explainer = gradcam_fast.Explainer(model, layer="features.3")
    with pytest.raises(CannotRecord):
        dry_run(lambda: explainer(images, lambda logits: logits[:, :1]), CPU)


@pytest.mark.parametrize("arguments", [{}, {"topk": 2}, {"target": lambda logits: logits[:, :3]}])
def test_an_explanation_passes_the_dry_run_and_reads_weights_and_images(arguments, images):
    explainer = gradcam_fast.Explainer(ConvNet(), layer="features.3")
    request = explainer._request(images, **arguments)
    storages = dry_run(lambda: explainer._explain_at(request, explainer._layers), CPU)
    addresses = {storage.data_ptr() for storage in storages}
    weights = [tensor for name, tensor in explainer.model.state_dict().items() if "num_batches" not in name]
    assert {tensor.data_ptr() for tensor in (*weights, images)} <= addresses
    assert len(addresses) == len(weights) + 1


def test_tensors_in_a_closure_are_among_the_storages_read():
    weights = torch.randn(2, 3)
    storages = dry_run(lambda: (MAPS * weights).sum(), CPU)
    assert {storage.data_ptr() for storage in storages} == {MAPS.data_ptr(), weights.data_ptr()}


def recorded_explainer(model, images, recorder=FakeRecorder, **choices):
    explainer = graph_explainer(model, recorder, **choices)
    for _ in range(2):
        explainer(images, 1)
    assert count_recordings(explainer) == 1
    return explainer


def assert_same_as_eager(explainer, images):
    assert_same_explanation(explainer(images, 1), gradcam_fast.explain(explainer.model, images, target=1))


@torch.no_grad()
def double_weights(model):
    for parameter in model.parameters():
        parameter.mul_(2)


def test_values_written_into_the_weights_take_effect_without_a_new_recording(images):
    explainer = recorded_explainer(ConvNet(), images)
    recorder = explainer._graphs._recorder
    for change in (double_weights, lambda model: model.load_state_dict(ConvNet().state_dict())):
        before = explainer(images, 1).heatmap
        change(explainer.model)
        assert_same_as_eager(explainer, images)
        assert not torch.equal(explainer(images, 1).heatmap, before)
    assert explainer._graphs._recorder is recorder and count_recordings(explainer) == 1


CHANGES = {
    "assigned state": lambda model: model.load_state_dict(ConvNet().state_dict(), assign=True),
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
    explainer = recorded_explainer(ConvNet(), images)
    recorder = explainer._graphs._recorder
    CHANGES[change](explainer.model)
    for _ in range(3):
        assert_same_as_eager(explainer, images)
    assert explainer._graphs._recorder is not recorder and count_recordings(explainer) == 1


def test_another_precision_is_recorded_anew(images):
    explainer = recorded_explainer(ConvNet(), images)
    explainer.model.double()
    for _ in range(3):
        assert_same_as_eager(explainer, images.double())
    assert count_recordings(explainer) == 1 and explainer(images.double(), 1).logits.dtype == torch.float64


def test_a_new_head_with_more_classes_can_be_asked_for_them(images):
    explainer = recorded_explainer(ConvNet(), images)
    explainer.model.head = ConvNet(classes=9).head
    for _ in range(2):
        assert torch.equal(explainer(images, 8).score, explainer.model(images)[:, 8])
    assert explainer._graphs._recorder.recordings[0].logits.shape == (3, 9)


def test_a_model_in_training_mode_is_explained_eagerly_until_eval_mode_returns(images):
    explainer = recorded_explainer(ConvNet(), images)
    explainer.model.features[1].train()
    with unchanged(explainer.model), pytest.warns(RuntimeWarning, match=r"eagerly: module 'features.1' is in training"):
        explanation = explainer(images, 1)
    assert_same_explanation(explanation, gradcam_fast.explain(explainer.model, images, target=1))
    assert "training" in explainer.eager_because and count_recordings(explainer) == 0
    explainer.model.eval()
    assert_same_as_eager(explainer, images)
    assert count_recordings(explainer) == 1 and explainer.eager_because is None


def test_hooks_run_in_every_call(images):
    explainer = recorded_explainer(ConvNet(), images)
    calls = []
    handle = explainer.model.features[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(RuntimeWarning, match=r"'features.0' has a hook"):
        explainer(images, 1)
    calls.clear()
    for _ in range(3):
        explainer(images, 1)
    assert len(calls) == 3
    handle.remove()
    assert_same_as_eager(explainer, images)
    assert count_recordings(explainer) == 1


class CountingInPlace(ConvNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


@pytest.mark.parametrize("model", [Counting, CountingInPlace])
def test_a_forward_that_writes_to_a_buffer_does_so_once_per_call(model, images):
    explainer = graph_explainer(model(), layer="features.3")
    with pytest.warns(RuntimeWarning, match="writes to its buffers"):
        for calls in range(1, 5):
            explainer(images, 1)
            assert explainer.model.seen == 3 * calls
    assert count_recordings(explainer) == 0
