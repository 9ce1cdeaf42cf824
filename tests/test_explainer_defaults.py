"""PyTorch's default type and default device change no explanation."""

from contextlib import contextmanager

import numpy
import pytest
import torch
from PIL import Image
from support.networks import ConvNet
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

import gradcam_fast
from gradcam_fast import Preprocess, metrics, overlay
from gradcam_fast._layer_search import memory
from gradcam_fast.methods import METHODS


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
}
CALLS = {
    "found": {},
    "named": {"layer": "features.3"},
    "several layers": {"layer": ["features.1", "features.3"]},
    "when": {"when": lambda logits: logits[:, 0] > logits[:, 0].median()},
    "when none": {"when": lambda logits: logits[:, 0] > 1e9},
    "method": {"method": "gradcam++", "normalize": "max"},
    "call": {"layer": "features.3", "call": "all"},
}
TARGETS = {
    "highest": {},
    "topk": {"topk": 3},
    "number": {"target": 2},
    "list": {"target": [[0, 1]]},
    "callable": {"target": lambda logits: logits[:, 1]},
    "binary": {"target": gradcam_fast.targets.probability(1)},
    "finer": {"target": gradcam_fast.targets.finer()},
}


def explained(model, images, call, target):
    memory._MEMORY.clear()
    explanation = gradcam_fast.Explainer(model, **CALLS[call])(images, **TARGETS[target])
    names = ("heatmap", "logits", "score", "raw_min", "raw_max", "valid", "reason_codes")
    return [getattr(explanation, name) for name in names]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize(("call", "target"), [*((call, "highest") for call in CALLS), *(("found", t) for t in TARGETS)])
def test_the_bits_and_types_are_those_under_the_usual_defaults(default, call, target, images):
    model = ConvNet()
    expected = explained(model, images, call, target)
    with DEFAULTS[default]():
        actual = explained(model, images, call, target)
    for result, usual in zip(actual, expected, strict=True):
        assert result.dtype == usual.dtype and result.device == usual.device
        assert torch.equal(result.nan_to_num(-1), usual.nan_to_num(-1))


def of_metrics(explainer, images):
    explanation = explainer(images)
    boxes = torch.tensor([[2.0, 3, 9, 9]] * len(images), dtype=torch.float32, device="cpu")
    for result in (
        metrics.road(explainer, images, explanation),
        metrics.insertion(explainer, images, explanation),
        metrics.stability(explainer, images),
        metrics.randomisation(explainer, images),
        metrics.complexity(explanation.heatmap),
    ):
        yield from vars(result).values()
    yield metrics.confidence_drop(explainer, images, explanation)
    yield metrics.pointing_game(explanation.heatmap, boxes)
    yield from (metrics.random_map(images), metrics.centre_map(images), metrics.edge_map(images))


def of_photos(explainer, images):
    photo = Image.fromarray(numpy.arange(40 * 30 * 3, dtype=numpy.uint8).reshape(40, 30, 3))
    explanation = explainer.replace(preprocess=Preprocess(16, crop=0.8), size="original")(photo)
    yield from (explanation.heatmap, explanation.boxes, *explanation.photos)
    yield from (overlay(explanation.photos[0][None], explanation.heatmap, edges=edges) for edges in (False, True))
    yield torch.from_numpy(numpy.array(explanation.overlay()))
    transforms = [Resize(18), CenterCrop(16), ToTensor(), Normalize([0.5] * 3, [0.2] * 3)]
    yield Preprocess.of(Compose(transforms))(photo).images


WORK = {
    **{
        method: lambda explainer, images, method=method: [explainer.replace(method=method)(images).heatmap]
        for method in METHODS
    },
    **{
        smooth: lambda explainer, images, smooth=smooth: [explainer.replace(smooth=smooth)(images).heatmap]
        for smooth in ("eigen", "augment", "noise")
    },
    "metrics": of_metrics,
    "photos": of_photos,
}


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("work", WORK)
def test_methods_metrics_and_photos_give_what_they_give_under_the_usual_defaults(default, work, images):
    explainer = gradcam_fast.Explainer(ConvNet(), layer="features.3")
    expected = [value for value in WORK[work](explainer, images) if isinstance(value, torch.Tensor)]
    with DEFAULTS[default]():
        actual = [value for value in WORK[work](explainer, images) if isinstance(value, torch.Tensor)]
    assert len(actual) == len(expected) > 0
    for result, usual in zip(actual, expected, strict=True):
        assert (result.dtype, result.device) == (usual.dtype, usual.device)
        assert torch.equal(result.nan_to_num(-1), usual.nan_to_num(-1))


@pytest.mark.parametrize("default", DEFAULTS)
def test_a_clip_has_the_same_maps(default):
    model = Clip().eval()
    clips = torch.rand(2, 4, 3, 16, 16)
    expected = gradcam_fast.explain(model, clips)
    with DEFAULTS[default]():
        memory._MEMORY.clear()
        actual = gradcam_fast.explain(model, clips)
    assert torch.equal(actual.heatmap, expected.heatmap) and actual.layer == expected.layer


class Clip(torch.nn.Module):
    """A network for single images that takes clips, the frames of all samples in reverse order."""

    def __init__(self):
        super().__init__()
        self.frames = ConvNet()

    def forward(self, clips):
        frames = clips.transpose(0, 1).flatten(0, 1)
        return self.frames(frames).unflatten(0, (clips.shape[1], -1)).mean(0)


@pytest.mark.parametrize("default", DEFAULTS)
def test_photos_become_float32_on_the_cpu(default):
    from PIL import Image

    preprocess = gradcam_fast.Preprocess((8, 8))
    expected, boxes = preprocess([Image.new("RGB", (9, 9), "red")])
    with DEFAULTS[default]():
        actual, actual_boxes = preprocess([Image.new("RGB", (9, 9), "red")])
    assert actual.dtype == actual_boxes.dtype == torch.float32
    assert torch.equal(actual, expected) and torch.equal(actual_boxes, boxes)
