"""PyTorch's default type and default device change no explanation."""

from contextlib import contextmanager

import pytest
import torch
from support.networks import ConvNet

import gradcam_fast
from gradcam_fast._layer_search import memory


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
