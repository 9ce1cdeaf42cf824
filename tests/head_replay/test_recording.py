"""A replay runs only what lies behind the layer, on changed activations, and gives what the whole model would."""

import threading

import pytest
import torch
from support import naive_methods
from support.networks import ConvNet, PatchNet, Repeating, conv_relu, pooled_head
from support.unchanged import unchanged
from torch import nn
from torch.nn import functional as F

from gradcam_fast._head_replay.recording import record
from gradcam_fast._model.inputs import Inputs
from gradcam_fast._model.target_layer import TargetLayer
from gradcam_fast.exceptions import HeadNotReplayable, LayerNotRun


class Functional(nn.Module):
    """Writes into its input and into what its modules returned, and adds an earlier map behind the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = pooled_head(6)
        self.eval()

    def forward(self, images):
        images -= 0.5
        first = F.relu(self.first(images), inplace=True)
        first += 1
        second = F.relu_(self.second(first))
        return self.head(self.third(second) + first)


class OneRelu(nn.Module):
    """One ReLU module that runs before the layer, is the layer, and runs behind it."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)])
        self.relu, self.head = nn.ReLU(inplace=True), pooled_head(6)
        self.eval()

    def forward(self, images):
        for convolution in self.convolutions:
            images = self.relu(convolution(images))
        return self.head(images)


class TwoOutputs(nn.Module):
    """The layer returns maps and a number of each image, and the head reads both."""

    class Layer(nn.Module):
        def forward(self, maps):
            return {"maps": maps.relu(), "sum": maps.sum((1, 2, 3))}

    def __init__(self):
        super().__init__()
        self.trunk, self.layer, self.head = conv_relu(), self.Layer(), pooled_head(8)
        self.eval()

    def forward(self, images):
        found = self.layer(self.trunk(images))
        return self.head(found["maps"]) * found["sum"].unsqueeze(1)


class Counted(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.runs = inner, 0

    def forward(self, maps):
        self.runs += 1
        return self.inner(maps)


def recording(model, layer, image, call=None):
    return record(model, Inputs((image,), {}), TargetLayer(layer, model.get_submodule(layer), call))


def rows(activations, count):
    """Activations of which each row is changed in its own way."""
    factors = torch.arange(count, dtype=activations.dtype).reshape(-1, *[1] * (activations.dim() - 1))
    return activations * factors


CASES = [
    (ConvNet, "features.3", None),
    (ConvNet, "features.4", None),
    (ConvNet, "features", None),
    (Functional, "first", None),
    (Functional, "second", None),
    (Functional, "third", None),
    (OneRelu, "relu", None),
    (OneRelu, "relu", 0),
    (OneRelu, "relu", 1),
    (OneRelu, "convolutions.1", None),
    (lambda: Repeating(3), "relu", None),
    (lambda: Repeating(3), "block", 1),
    (lambda: PatchNet(class_tokens=1), "norm", None),
    (lambda: PatchNet(class_tokens=1), "patch", None),
]


@pytest.mark.parametrize(("make", "layer", "call"), CASES)
def test_a_replay_gives_what_the_whole_model_gives_with_changed_activations(make, layer, call, images):
    model, image = make(), images[:1]
    with torch.no_grad(), unchanged(model):
        recorded = recording(model, layer, image.clone(), call)
        returned = recorded.replay(rows(recorded.activations, 4), 4)
    for row in range(4):
        changed = naive_methods.output_with(
            model, layer, image.clone(), lambda output, row=row: output * row, -1 if call is None else call
        )
        assert torch.allclose(returned[row], changed[0], atol=1e-5)


def test_a_recording_returns_what_the_model_returns(images):
    model = Functional()
    with torch.no_grad():
        assert torch.equal(recording(model, "second", images[:1].clone()).returned, model(images[:1].clone()))


def test_a_layer_that_returns_several_tensors_keeps_the_others(images):
    model = TwoOutputs()
    with torch.no_grad():
        recorded = recording(model, "layer", images[:1])
        maps = recorded.activations
        returned = recorded.replay(torch.cat([maps, maps * 0]), 2)
        number = model.trunk(images[:1]).sum((1, 2, 3))
        expected = model.head(torch.cat([maps, maps * 0])) * number.unsqueeze(1)
    assert torch.allclose(returned, expected, atol=1e-5)


def test_what_lies_before_the_layer_does_not_run_again(images):
    model = nn.Sequential(Counted(nn.Conv2d(3, 8, 3)), Counted(nn.ReLU()), Counted(pooled_head(8))).eval()
    with torch.no_grad():
        recorded = recording(model, "1", images[:1])
        for _ in range(3):
            recorded.replay(recorded.activations.clone(), 1)
    assert [child.runs for child in model] == [1, 1, 5]  # one of them to see what nothing reads


def test_what_was_recorded_is_handed_out_without_a_copy(images):
    handed = []

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.layer, self.head = conv_relu(), nn.Conv2d(8, 8, 1), pooled_head(8)

        def forward(self, images):
            trunk = self.trunk(images)
            handed.append(trunk)
            return self.head(self.layer(trunk))

    model = Looks().eval()
    with torch.no_grad():
        recorded = recording(model, "layer", images[:1])
        recorded.replay(recorded.activations.repeat(5, 1, 1, 1), 5)
    assert handed[-1].shape[0] == 5 and handed[-1].stride(0) == 0


def test_a_model_that_runs_other_modules_than_before_is_refused(images):
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.layer, self.head = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(3, 8, 1),
                nn.ReLU(),
                pooled_head(8),
            )
            self.turn = 1

        def forward(self, images):
            return self.head(self.layer((self.one if self.turn % 2 else self.other)(images)))

    model = Turns().eval()
    with torch.no_grad():
        recorded = recording(model, "layer", images[:1])
        model.turn = 2
        with pytest.raises(HeadNotReplayable, match=r"'layer'.*another order.*gradcam"):
            recorded.replay(recorded.activations.clone(), 1)


def test_a_layer_that_does_not_run_is_refused(images):
    model = ConvNet()
    model.idle = nn.Conv2d(3, 4, 1)
    with torch.no_grad(), pytest.raises(LayerNotRun, match="idle"):
        recording(model, "idle", images[:1])


@pytest.mark.parametrize("place", ["at_start", "at_head"])
def test_a_model_that_raises_leaves_calls_as_they_were(place, images):
    model = ConvNet()
    with torch.no_grad():
        recorded = recording(model, "features.0", images[:1])

        def broken(_):
            raise RuntimeError("broken")

        setattr(model, place, broken)
        call = nn.Module.__call__
        with unchanged(model), pytest.raises(RuntimeError, match="broken"):
            recorded.replay(recorded.activations.clone(), 1)
        with unchanged(model), pytest.raises(RuntimeError, match="broken"):
            recording(model, "features.0", images[:1])
    assert nn.Module.__call__ is call is nn.Module._wrapped_call_impl


def test_other_threads_run_the_whole_model_meanwhile(images):
    model, entered, done = ConvNet(), threading.Event(), threading.Event()
    with torch.no_grad():
        expected = model(images)
        recorded = recording(model, "features.4", images[:1])
    outputs = []

    def other():
        entered.wait(10)
        with torch.no_grad():
            outputs.append(model(images))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    this_thread = threading.get_ident()

    def wait_for_the_other(_):
        if threading.get_ident() == this_thread:
            entered.set()
            done.wait(10)

    model.at_head = wait_for_the_other
    with torch.no_grad():
        recorded.replay(recorded.activations * 0, 1)
    thread.join()
    assert torch.equal(outputs[0], expected)


def test_hooks_of_the_callers_see_what_they_would(images):
    model, seen = ConvNet(), []
    model.features[4].register_forward_hook(lambda _, __, output: output + 1)
    model.head[4].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        recorded = recording(model, "features.4", images[:1])
        assert torch.allclose(recorded.replay(recorded.activations.clone(), 1), model(images[:1]), atol=1e-6)
    assert len(seen) == 4  # the recording, the look for what nothing reads, the replay, and the model itself


def test_what_nothing_behind_the_layer_reads_takes_no_memory(images):
    def stored(recorded):
        outputs = [ended.output for frame in recorded.frames for ended in frame]
        return sum(output.untyped_storage().nbytes() for output in outputs)

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.layer, self.head = conv_relu(), nn.Conv2d(8, 8, 1), pooled_head(8)

        def forward(self, images):
            trunk = self.trunk(images)
            return self.head(F.relu(self.layer(trunk)) + trunk)

    with torch.no_grad():
        chain = recording(ConvNet(), "features.3", images[:1])
        assert stored(chain) == 3 * 4  # one number for each module before
        assert torch.allclose(chain.replay(chain.activations, 1), chain.returned, atol=1e-6)
        skipping = recording(Skips().eval(), "layer", images[:1])
        assert stored(skipping) == 8 * 16 * 16 * 4
        assert torch.allclose(skipping.replay(skipping.activations, 1), skipping.returned, atol=1e-6)
