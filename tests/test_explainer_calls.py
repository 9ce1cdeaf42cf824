"""Layers that run several times in one forward, on one image or on several: which call is explained."""

import pytest
import torch
from support.refusals import assert_says
from support.tolerances import SAME_INPUTS
from torch import nn
from torch.nn import functional as F

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast.exceptions import NoSuchCall, NotSpatial
from gradcam_fast.features import feature_maps


def trunk(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(inplace=True))


class Siamese(nn.Module):
    """Compares the first image with the others, whose trunk may run in any order."""

    def __init__(self, backwards=False):
        super().__init__()
        self.backwards, self.enc, self.fc = backwards, trunk(), nn.Linear(6, 4)
        self.eval()

    def forward(self, *images):
        order = reversed(range(len(images))) if self.backwards else range(len(images))
        vectors = {place: self.fc(self.enc(images[place]).mean((2, 3))) for place in order}
        distances = [F.pairwise_distance(vectors[0], vectors[place]) for place in range(1, len(images))]
        return sum((-1) ** place * distance for place, distance in enumerate(distances))


def raw_map(model, images, layer, call, size):
    """The map of one call by an ordinary forward and backward; before it is scaled."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, out: (kept.append(out), out.clone())[1])
    output = model(*images)
    handle.remove()
    score = output.sum() if output.dim() == 1 else output[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, kept[call])
    raw = (gradient.double().mean((2, 3), keepdim=True) * kept[call].double()).sum(1, keepdim=True)
    return F.interpolate(raw, size, mode="bilinear", align_corners=False)[:, 0].detach()


def scaled(raw, axes=(-2, -1)):
    low, high = raw.amin(axes, keepdim=True), raw.amax(axes, keepdim=True)
    return (raw - low) / (high - low)


def assert_map(explanation, raw, axes=(-2, -1)):
    atol = SAME_INPUTS[torch.float32]
    torch.testing.assert_close(explanation.heatmap.double(), scaled(raw, axes), rtol=0, atol=atol)


FIRST, SECOND, THIRD = (24, 32), (16, 16), (20, 12)


@pytest.fixture
def images():
    return tuple(torch.rand(2, 3, *sides) for sides in (FIRST, SECOND, THIRD))


@pytest.mark.parametrize("count", [2, 3], ids=["siamese", "triplet"])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("layer", ["enc", None])
def test_the_first_image_is_explained(layer, backwards, count, images):
    model, images = Siamese(backwards), images[:count]
    explainer = gradcam_fast.Explainer(model, layer=layer, relu=False)
    expected = raw_map(model, images, "enc", count - 1 if backwards else 0, FIRST)
    for _ in range(3):
        explanation = explainer(images)
        assert explanation.layer == "enc"
        assert_map(explanation, expected)


@pytest.mark.parametrize("layer", ["enc", None])
@pytest.mark.parametrize(("call", "size"), [(0, FIRST), (1, SECOND), (2, THIRD), (-1, THIRD), (-2, SECOND)])
def test_a_call_that_is_named_explains_the_image_it_sees_in_its_size(call, size, layer, images):
    model = Siamese()
    assert_map(explain(model, images, layer=layer, call=call, relu=False), raw_map(model, images, "enc", call, size))


@pytest.mark.parametrize("layer", ["enc", None])
def test_one_tensor_in_two_places_is_two_images(layer, images):
    class Weighted(Siamese):
        def forward(self, first, second):
            return self.fc(self.enc(first).mean((2, 3))) + 3 * self.fc(self.enc(second / 2).mean((2, 3)))

    model, twice = Weighted(), (images[0], images[0])
    for call, index in ((None, 0), (0, 0), (1, 1)):
        expected = raw_map(model, twice, "enc", index, FIRST)
        assert_map(explain(model, twice, target=1, layer=layer, call=call, relu=False), expected)


def test_a_trunk_that_detaches_its_input_is_explained_at_its_last_call(images):
    class Detached(TwoStreams):
        def forward(self, image, flow):
            return super().forward(image.detach(), flow.detach())

    model, inputs = Detached(), (images[0], torch.rand(2, 10, *FIRST))
    for layer in ("rgb", "flow"):
        expected = raw_map(model, inputs, layer, 0, FIRST)
        assert_map(explain(model, inputs, target=1, layer=layer, relu=False), expected)


def test_images_may_be_named(images):
    class Named(Siamese):
        def forward(self, query, other):
            return super().forward(query, other)

    model, (query, other, _) = Named(), images
    both = {"other": other, "query": query}
    # The first of the mapping counts, wherever the model has it.
    assert_map(explain(model, both, layer="enc", relu=False), raw_map(model, (query, other), "enc", 1, SECOND))


def test_all_calls_on_images_of_one_size_share_a_scale(images):
    first, second = images[0], torch.rand_like(images[0])
    model = Siamese()
    explanation = explain(model, (first, second), layer="enc", call="all", relu=False)
    raw = torch.stack([raw_map(model, (first, second), "enc", call, FIRST) for call in (0, 1)], 1)
    assert explanation.raw_max.shape == (2,)
    assert_map(explanation, raw, (-3, -2, -1))


class Concatenated(Siamese):
    """The trunk runs once, on all images in one batch."""

    def forward(self, *images):
        images = images[::-1] if self.backwards else images
        vectors = self.fc(self.enc(torch.cat(images)).mean((2, 3))).chunk(len(images))
        return F.pairwise_distance(*vectors[::-1] if self.backwards else vectors)


@pytest.mark.parametrize("layer", ["enc", None])
@pytest.mark.parametrize("backwards", [False, True])
def test_images_that_run_in_one_batch_are_told_apart(backwards, layer, images):
    both = images[0], torch.rand_like(images[0])
    model, apart = Concatenated(backwards), Siamese(backwards)
    apart.load_state_dict(model.state_dict())
    expected = raw_map(apart, both, "enc", 1 if backwards else 0, FIRST)
    assert_map(explain(model, both, layer=layer, relu=False), expected)
    maps = feature_maps(model, both, layer="enc", target=lambda distances: distances)
    assert maps.activations.shape == (2, 6, 6, 8)


class TwoStreams(nn.Module):
    """An image and its optical flow, each with a trunk of its own."""

    def __init__(self):
        super().__init__()
        self.rgb, self.flow, self.fc = trunk(), trunk(10), nn.Linear(12, 4)
        self.eval()

    def forward(self, image, flow):
        return self.fc(torch.cat([self.rgb(image).mean((2, 3)), self.flow(flow).mean((2, 3))], 1))


def test_a_stream_that_is_named_is_explained_in_its_own_size():
    model, inputs = TwoStreams(), (torch.rand(2, 3, *FIRST), torch.rand(2, 10, *SECOND))
    found = explain(model, inputs, target=1, relu=False)
    assert found.layer == "rgb"
    assert_map(found, raw_map(model, inputs, "rgb", 0, FIRST))
    assert_map(explain(model, inputs, target=1, layer="flow", relu=False), raw_map(model, inputs, "flow", 0, SECOND))
    with pytest.raises(NoSuchCall, match="16x16 and 24x32 pixels"):
        explain(model, inputs, target=1, layer=["rgb", "flow"])


class Prototypes(nn.Module):
    """Compares an image with learned ones, on which the trunk runs last."""

    def __init__(self):
        super().__init__()
        self.enc, self.prototypes = trunk(), nn.Parameter(torch.rand(5, 3, 16, 16))
        self.eval()

    def forward(self, image):
        return self.enc(image).mean((2, 3)) @ self.enc(self.prototypes).mean((2, 3)).T


@pytest.mark.parametrize("layer", ["enc", None])
def test_a_call_on_learned_images_does_not_count(layer, images):
    model = Prototypes()
    assert_map(
        explain(model, images[0], target=1, layer=layer, relu=False), raw_map(model, images[:1], "enc", 0, FIRST)
    )


class Repeated(nn.Module):
    """One convolution that runs three times, each time on what it made before."""

    def __init__(self):
        super().__init__()
        self.stem, self.step, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(6, 4)
        self.eval()

    def forward(self, image):
        maps = self.stem(image)
        for _ in range(3):
            maps = self.step(maps).relu_()
        return self.fc(maps.mean((2, 3)))


@pytest.mark.parametrize(("call", "index"), [(None, 2), (-1, 2), (-2, 1), (0, 0), (1, 1), (2, 2)])
def test_calls_behind_each_other(call, index, images):
    model = Repeated()
    explanation = explain(model, images[0], target=1, layer="step", call=call, relu=False)
    assert_map(explanation, raw_map(model, images[:1], "step", index, FIRST))


def test_all_calls_behind_each_other(images):
    model = Repeated()
    explanation = explain(model, images[0], target=[[1, 2]] * 2, layer="step", call="all", relu=False)
    raw = torch.stack([raw_map(model, images[:1], "step", call, FIRST) for call in range(3)], 1)
    assert explanation.heatmap.shape == (2, 2, 3, *FIRST)
    heatmap = explanation.heatmap[:, 0].double()
    torch.testing.assert_close(heatmap, scaled(raw, (-3, -2, -1)), rtol=0, atol=SAME_INPUTS[torch.float32])


@pytest.mark.parametrize(
    ("choices", "error", "parts"),
    [
        ({"call": 7}, NoSuchCall, ("'enc'", "ran 2 times", "call=7", "call=0 to 1")),
        ({"call": "all"}, NoSuchCall, ("'enc'", "16x16 and 24x32 pixels", "call=0 to 1")),
        ({"call": "first"}, TypeError, ("call='first'", "0 for the first", "'all'")),
        ({"call": True}, TypeError, ("call=True", "-1 for the last")),
    ],
)
def test_a_call_that_cannot_be_explained_is_refused(choices, error, parts, images):
    with pytest.raises(error) as refusal:
        explain(Siamese(), images[:2], layer="enc", **choices)
    assert_says(refusal, error, parts)


def test_a_layer_on_other_images_only_is_refused(images):
    class Others(Siamese):
        def forward(self, first, *others):
            return first.mean((1, 2, 3)) * super().forward(*others)

    with pytest.raises(NoSuchCall) as refusal:
        explain(Others(), images, layer="enc")
    assert_says(refusal, ValueError, ("'enc'", "never on input 0 of images", "call=0 to 1"))


def test_nothing_is_asked_of_a_model_of_one_image_whose_layer_runs_once(images):
    runs = []
    model = trunk().append(nn.Flatten()).append(nn.Linear(6 * 6 * 8, 4)).eval()
    model.register_forward_hook(lambda *_: runs.append(1))
    explain(model, images[0], layer="3")
    assert len(runs) == 1


class OneByOne(nn.Module):
    """Runs its trunk on one sample of the batch after the other: an image, or all pictures of a clip."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(6, 5)
        self.eval()

    def forward(self, images):
        samples = [sample if sample.dim() == 4 else sample[None] for sample in images]
        return torch.stack([self.head(self.trunk(sample).mean((2, 3))).mean(0) for sample in samples])


@pytest.mark.parametrize("layer", ["trunk", None])
@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (3, 2, 3, 16, 16)])
def test_a_layer_that_runs_on_parts_of_the_batch_is_refused_with_the_way_out(shape, layer):
    torch.manual_seed(0)
    model, batch = OneByOne(), torch.rand(shape)
    with pytest.raises(NotSpatial, match="runs it on parts of the batch in turn; explain the samples one by one"):
        explain(model, batch, target=1, layer=layer)
    explanation = explain(model, batch[:1], target=1, layer=layer, relu=False)
    assert explanation.layer == "trunk" and explanation.valid.all()
