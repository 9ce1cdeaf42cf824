"""The layer found depends only on the request; it is remembered, and searched for again when it no longer serves.

Known networks are in test_search_known_networks.py.
"""

import gc
import weakref
from functools import partial

import pytest
import torch
from support import heads
from support.dense_heads import Decoupled
from support.live_memory import peak_bytes
from support.networks import ConvNet, TwoLevels, conv_relu
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gradcam_fast import Explainer, explain
from gradcam_fast._capture.containers import all_tensors
from gradcam_fast._layer_search.memory import _MEMORY
from gradcam_fast._layer_search.search import _find


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = (nn.Conv2d(c, 4, 3) for c in (3, 4, 4))

    def forward(self, images):
        trunk = self.trunk(images)
        return {name: getattr(self, name)(trunk).mean((-2, -1)) for name in ("a", "b")}


def test_the_layer_found_depends_on_the_score():
    model, images = TwoHeads(), torch.randn(2, 3, 12, 12)
    for name in ("a", "b", "a"):
        explanation = explain(model, images, output=lambda out, name=name: out[name], relu=False)
        assert explanation.layer == name and explanation.valid.all()


class ZeroHead(nn.Module):
    """A head of zeros, and a convolution that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        maps = self.conv(images)
        self.unused(maps)
        return self.head(maps.mean((-2, -1)))


def test_a_layer_found_for_a_head_of_zeros_is_not_remembered():
    model, images = ZeroHead(), torch.randn(2, 3, 12, 12)
    with pytest.warns(UserWarning, match="layer 'conv' is zero everywhere"):
        explanation = explain(model, images)
    assert explanation.layer == "conv" and not explanation.valid.any()
    nn.init.normal_(model.head.weight)
    explanation = explain(model, images, relu=False)
    assert explanation.layer == "conv" and explanation.valid.all()


def test_a_layer_found_for_an_empty_batch_is_not_remembered():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 9, 9)
    assert explain(model, images[:0]).heatmap.shape == (0, 9, 9)
    explanation = explain(model, images)
    assert explanation.layer == "1" and explanation.valid.all()


def test_the_layer_is_searched_for_once_per_image_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for images, runs in ((torch.randn(2, 3, 9, 9), 2), (torch.randn(3, 3, 9, 9), 1), (torch.randn(1, 3, 8, 9), 2)):
        calls.clear()
        explain(model, images)
        assert len(calls) == runs


def test_a_detached_score_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RuntimeError, match="it was detached"):
        explain(model, torch.randn(2, 3, 9, 9), target=lambda out: out.detach()[:, 0])


def test_the_search_runs_again_when_the_remembered_layer_has_no_gradient():
    class Levels(nn.Module):
        """Two maps, each with a score of its own."""

        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, 2)

        def forward(self, images):
            return torch.stack([self.fine(images).mean((1, 2, 3)), self.coarse(images).mean((1, 2, 3))], 1)

    model, images = Levels(), torch.randn(2, 3, 12, 12)
    for column, name in ((1, "coarse"), (0, "fine"), (1, "coarse")):
        explanation = explain(model, images, target=column, relu=False)
        assert explanation.layer == name and explanation.valid.all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_layer_found_does_not_depend_on_earlier_requests(order):
    by_output, by_target, images = TwoLevels(), TwoLevels(), torch.randn(2, 3, 9, 9)
    targets = [lambda out: out[0][:, 1], lambda out: out[1][:, 1]]
    for member in order:
        expected = ("trunk", "branch")[member]
        assert explain(by_output, images, output=lambda out, member=member: out[member], relu=False).layer == expected
        assert explain(by_output, images, output=lambda out: out[member], relu=False).layer == expected  # noqa: B023
        assert explain(by_output, images, output=partial(lambda k, out: out[k], member), relu=False).layer == expected
        assert explain(by_target, images, target=targets[member], relu=False).layer == expected


def test_a_function_made_anew_for_every_call_starts_no_new_search():
    model, images = TwoLevels(), torch.randn(2, 3, 9, 9)
    explain(model, images, target=lambda out: out[1][:, 0], relu=False)
    model.runs = 0
    for column in range(4):
        explain(model, images, target=lambda out: out[0][:, column], relu=False)  # noqa: B023
    # A run that finds the scores to come from another head, a trial run, the explanation; then one run each.
    assert model.runs == 3 + 3


def test_remembered_layers_do_not_accumulate_and_keep_no_model_alive():
    class Unhashable:
        """A callable for tokens= that cannot be hashed."""

        __hash__ = None

        def __call__(self, maps):
            return maps

    model, images = ConvNet(), torch.randn(2, 3, 16, 16)
    for _ in range(5):
        explain(model, images, tokens=lambda maps, model=model: maps * model.training + maps)
        explain(model, images, tokens=Unhashable())
    assert len(_MEMORY[model]) == 2
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


class TwoImages(nn.Module):
    """Takes an image and its depth at another resolution, each with its own trunk, or both with one trunk."""

    def __init__(self, second):
        super().__init__()
        self.first, self.head = conv_relu(), nn.Linear(16, 5)
        self.second = self.first if second is None else second
        self.eval()

    def forward(self, picture, other):
        return self.head(torch.cat([self.first(picture).mean((2, 3)), self.second(other).mean((2, 3))], 1))


def test_the_layer_found_belongs_to_the_first_input_of_images():
    torch.manual_seed(3)
    explanation = explain(TwoImages(conv_relu(1)), (torch.rand(2, 3, 16, 16), torch.rand(2, 1, 12, 12)), relu=False)
    assert explanation.layer == "first" and explanation.heatmap.shape == (2, 16, 16)


def test_a_trunk_that_last_ran_on_another_input_is_explained_at_its_call_on_the_first():
    model, first, second = TwoImages(None), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 12, 20)
    explanation = explain(model, (first, second), target=1, relu=False)
    named = explain(model, (first, second), target=1, relu=False, layer="first", call=0)
    assert explanation.layer == "first" and torch.equal(explanation.heatmap, named.heatmap)
    assert explanation.heatmap.shape == (2, 16, 16)


def test_a_model_that_only_looks_at_another_input_is_refused():
    class Other(TwoImages):
        def forward(self, picture, other):
            return super().forward(other, other)

    with pytest.raises(ValueError, match="'first' runs on another input than the first one of images; call="):
        explain(Other(None), (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)))


def test_a_network_without_feature_maps_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="Sequential has no spatial feature map"):
        explain(flat, torch.randn(2, 3, 8, 8))


class Levels(nn.Module):
    """A detector: boxes (B,3,N) of two levels, each with a head of its own."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = conv_relu(), nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)) for _ in range(2))
        self.eval()

    def forward(self, images):
        fine = self.fine(images)
        levels = (fine, self.coarse(fine))
        return torch.cat([head(level).flatten(2) for head, level in zip(self.heads, levels, strict=True)], 2)


@pytest.mark.parametrize("flip", [False, True])
def test_every_image_decides_the_layer_where_their_boxes_are_on_different_levels(flip):
    torch.manual_seed(3)
    model, images = Levels(), torch.rand(2, 3, 16, 16)
    boxes = torch.tensor([0, -1])
    if flip:
        boxes = boxes.flip(0)

    def of_best_box(out):
        return torch.stack([image[1, box] for image, box in zip(out, boxes, strict=False)])

    explanation = explain(model, images, target=of_best_box, relu=False)
    assert explanation.layer == "fine" and explanation.valid.all()


class Keypoints(nn.Module):
    """The mean position of each keypoint: a softmax over positions."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(8, 2)
        self.eval()

    def forward(self, images):
        maps = self.trunk(images)
        return self.fc((maps.flatten(2).unsqueeze(1) * self.head(maps).flatten(2).softmax(2).unsqueeze(2)).sum(3))[:, 0]


def test_an_image_without_gradient_does_not_decide_the_layer_of_the_others():
    torch.manual_seed(3)
    model, images = Keypoints(), torch.rand(3, 3, 16, 16)
    images[0] = 0

    def where_any_light(out):
        return out[:, 0] * (images[: len(out)].amax((1, 2, 3)) > 0)

    explanation = explain(model, images, target=where_any_light, relu=False)
    assert explanation.layer == "trunk" and explanation.valid.tolist() == [False, True, True]


class Flipped(nn.Module):
    """The mean score of an image and its mirror image, both through one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = conv_relu(), nn.Linear(8, 2)
        self.eval()

    def forward(self, images):
        return sum(self.head(self.trunk(view).mean((2, 3))) for view in (images, images.flip(3)))


def test_the_last_of_several_calls_is_said_to_show_a_part():
    with pytest.warns(UserWarning, match="'trunk' show a part of what the score depends on"):
        assert explain(Flipped(), torch.rand(2, 3, 16, 16), target=1, relu=False).layer == "trunk"


SEARCHED = {
    "one trunk": (heads.AttentionPooling, {}),
    "two heads": (heads.Coarse, {}),
    "three trunks": (lambda: heads.Ensemble(3), {}),
    "a trunk in a loop over bands": (heads.Bands, {}),
    "a trunk on mirrored views": (lambda: heads.Views(lambda images: (images, images.flip(3))), {"target": 1}),
    "a segmentation": (heads.Unet, {"target": lambda out: out[:, 1].mean((1, 2))}),
    "all boxes of a detector": (Decoupled, {"target": lambda out: out[0].sum((1, 2))}),
}


@pytest.mark.filterwarnings("ignore:the heatmaps of")
@pytest.mark.parametrize("name", SEARCHED)
def test_the_search_works_no_more_than_three_forwards_on_one_image(name):
    make, choices = SEARCHED[name]
    model, images = make(), torch.rand(4, 3, 32, 32)

    def operations_of(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    def ask():
        return explain(model, images, relu=False, **choices)

    with torch.no_grad():
        forward = operations_of(lambda: model(images[:1]))
    first, later = operations_of(ask), operations_of(ask)
    assert first - later <= 3 * forward


@pytest.mark.parametrize("shared", [True, False])
def test_the_search_works_no_more_than_five_forwards_on_one_sample_of_several_inputs(shared):
    model, samples = TwoImages(None if shared else conv_relu()), (torch.rand(4, 3, 32, 32), torch.rand(4, 3, 24, 32))

    def operations_of(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    with torch.no_grad():
        forward = operations_of(lambda: model(*(images[:1] for images in samples)))
    first, later = (operations_of(lambda: explain(model, samples, target=1, relu=False)) for _ in range(2))
    assert first - later <= 5 * forward


class Compared(TwoImages):
    """Scores every image by all of a batch of others: it takes no other number of them than four."""

    def forward(self, picture, others):
        first, second = (self.first(images).mean((2, 3)) for images in (picture, others))
        return (first @ second.T).reshape(-1, 4)


def test_a_model_of_several_inputs_may_need_its_whole_batch():
    explanation = explain(Compared(None), (torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)), target=1, relu=False)
    assert explanation.layer == "first" and explanation.valid.all()


@pytest.mark.filterwarnings("ignore:the heatmaps of")
@pytest.mark.parametrize("name", SEARCHED)
def test_the_search_takes_the_memory_of_one_and_a_half_training_steps_at_most(name):
    make, choices = SEARCHED[name]
    model, images = make(), torch.rand(4, 3, 64, 64)
    request = Explainer(model)._request(images, choices.get("target"))

    def training_step():
        first = images[:1].clone()
        returned = model(first)
        score = choices["target"](returned) if callable(choices.get("target")) else all_tensors(returned)[0].amax(1)
        score.sum().backward()

    training_step()  # the parameters' gradients are there before
    assert peak_bytes(lambda: _find(model, request)) <= 1.5 * peak_bytes(training_step)
