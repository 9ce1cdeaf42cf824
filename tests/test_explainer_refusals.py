"""Wrong models and arguments of `explain` and `Explainer` are refused: one table line per mistake.

A line names the exception and what its message must contain: what was received, what was expected, what to do. What can
be known before the model runs is refused before it runs.
"""

import warnings

import numpy
import pytest
import torch
from support.networks import ConvNet, DeadEnds, Wrapped
from support.refusals import assert_says
from support.unchanged import unchanged

import gradcam_fast

IMAGES = torch.zeros(3, 3, 16, 16)


def argument(choices, error, *parts):
    """A table line named after its argument."""
    name = "-".join(choices) or "images"
    return pytest.param(choices, error, parts, id=f"{name}-{error.__name__}-{parts[0]}")


# Can be known before the model runs.
BEFORE = [
    argument({"layer": "features.33"}, ValueError, "features.33", "features.3"),
    argument({"layer": "feature.3"}, ValueError, "feature.3", "features.3"),
    argument({"layer": ["features.3", "featurs.1"]}, ValueError, "featurs.1", "features.1"),
    argument({"layer": []}, ValueError, "layer"),
    argument({"layer": 3}, TypeError, "layer", "3", "name", "module"),
    argument({"layer": torch.nn.Conv2d(3, 8, 3)}, ValueError, "Conv2d", "layer", "model"),
    argument({"method": "grad-cam"}, ValueError, "'grad-cam'", "'gradcam'", "'gradcam++'", "'layercam'"),
    argument({"method": None}, ValueError, "None", "'gradcam'"),
    argument({"normalize": "min-max"}, ValueError, "'min-max'", "'minmax'", "'max'", "'none'"),
    argument({"normalize": None}, ValueError, "None", "'none'"),
    argument({"size": 0}, ValueError, "size", "0", "1"),
    argument({"size": (8, -1)}, ValueError, "size", "-1", "1"),
    argument({"size": (8,)}, TypeError, "size", "(8,)", "height", "width"),
    argument({"size": 8.0}, TypeError, "size", "8.0", "integer"),
    argument({"size": "8"}, TypeError, "size", "'8'", "integer"),
    argument({"topk": 0}, ValueError, "topk", "0", "1"),
    argument({"topk": -1}, ValueError, "topk", "-1", "1"),
    argument({"topk": 2.0}, TypeError, "topk", "2.0", "integer"),
    argument({"topk": True}, TypeError, "topk", "True", "integer"),
    argument({"target": 1, "topk": 2}, ValueError, "target", "topk", "one"),
    argument({"target": 1.0}, TypeError, "target", "1.0", "integer"),
    argument({"target": True}, TypeError, "target", "bool", "integer"),
    argument({"target": "tabby"}, TypeError, "target", "tabby", "index"),
    argument({"target": [0.0, 1.0, 2.0]}, TypeError, "target", "float", "integer"),
    argument({"target": torch.zeros(3)}, TypeError, "target", "float32", "integer"),
    argument({"target": torch.ones(3, dtype=torch.bool)}, TypeError, "target", "bool", "integer"),
    argument({"target": [True, False, True]}, TypeError, "target", "bool", "integer"),
    argument({"target": [0, 1]}, ValueError, "target", "2", "3"),
    argument({"target": torch.zeros(4, dtype=torch.long)}, ValueError, "target", "4", "3"),
    argument({"target": [[0, 1], [2, 3]]}, ValueError, "target", "2", "3"),
    argument({"target": [[0, 1], [2], [3, 4]]}, ValueError, "target"),
    argument({"target": torch.zeros(3, 1, 1, dtype=torch.long)}, ValueError, "target", "(3, 1, 1)", "(3, K)"),
    argument({"target": torch.zeros(3, 0, dtype=torch.long)}, ValueError, "target", "(3, 0)"),
    argument({"target": [torch.sum] * 2}, ValueError, "2 of them functions", "batch of 3", "for each image"),
    argument(
        {"target": [torch.sum, 1, 2]}, ValueError, "3 targets, 1 of them functions", "batch of 3", "for each image"
    ),
    argument({"target": numpy.array([None, "a", 1], object)}, ValueError, "target", "rectangular", "indices"),
    argument({"target": -1}, ValueError, "target", "-1", "0"),
    argument({"output": "logits"}, TypeError, "output", "'logits'", "callable"),
    argument({"tokens": "grid"}, ValueError, "tokens", "'grid'", "(h,w)", "callable"),
    argument({"tokens": (0, 7)}, ValueError, "tokens", "(0, 7)", "(h,w)"),
    argument({"images": IMAGES.byte()}, TypeError, "uint8", "float"),
    argument({"images": IMAGES.long()}, TypeError, "int64", "float"),
    argument({"images": IMAGES.numpy()}, TypeError, "ndarray", "tensor"),
    argument({"images": IMAGES[0, 0]}, ValueError, "(16, 16)", "(B,C,H,W)"),
    argument({"images": IMAGES.to("meta")}, TypeError, "meta", "shapes only", "dense floating tensor"),
    argument({"images": ()}, ValueError, "images"),
]

# Can be known once the model has run.
AFTER = [
    argument({"images": IMAGES[None]}, ValueError, "the model itself", "(1, 3, 3, 16, 16)", "(B,C,H,W)"),
    argument({"target": 5}, ValueError, "target", "5", "0", "4"),
    argument({"target": [0, 1, 7]}, ValueError, "target", "7", "4"),
    argument({"target": [0, -2, 1]}, ValueError, "target", "-2"),
    argument({"target": [[0, 1], [2, 3], [4, 5]]}, ValueError, "target", "5", "4"),
    argument({"topk": 6}, ValueError, "topk", "6", "5"),
    argument({"tokens": (9, 9)}, ValueError, "features.3", "(3, 12, 4, 4)", "(9, 9)"),
    argument({"tokens": lambda maps: maps.mean(1)}, ValueError, "features.3", "(3, 4, 4)", "(3,C,h,w)"),
    argument({"tokens": lambda maps: maps[:, 99]}, ValueError, "features.3", "tokens= raised IndexError", "99"),
    argument({"target": [lambda logits: 1.0] * 3}, TypeError, "of one image", "float", "one number"),
    argument({"target": [lambda logits: logits] * 3}, TypeError, "of one image", "(5,)", "one number"),
    argument({"target": [torch.sum] * 3, "output": lambda logits: logits[:2]}, ValueError, "of 2 images", "output="),
    argument({"target": lambda output: output.sum()}, ValueError, "target", "shape ()", "(3,)", "(3, K)"),
    argument({"target": lambda output: output[:2, 0]}, ValueError, "target", "(2,)", "(3,)", "(3, K)"),
    argument({"target": lambda output: output[:, :, None]}, ValueError, "target", "(3, 5, 1)", "(3,)", "(3, K)"),
    argument({"target": lambda output: output.argmax(1)}, TypeError, "target", "int64", "float"),
    argument({"target": lambda output: 1.0}, TypeError, "target", "float", "tensor"),
    argument({"target": lambda output: output.detach()[:, 0]}, RuntimeError, "features.3", "depend"),
    argument({"output": lambda returned: [returned]}, TypeError, "output", "list", "tensor"),
]


@pytest.mark.parametrize(("choices", "error", "parts"), BEFORE)
def test_a_wrong_argument_is_refused_before_the_model_runs(choices, error, parts):
    model = ConvNet()
    assert_refused(model, choices, error, parts)
    assert model.calls == 0


@pytest.mark.parametrize(("choices", "error", "parts"), AFTER)
def test_an_argument_that_does_not_fit_the_output_is_refused_after_one_forward(choices, error, parts):
    model = ConvNet()
    assert_refused(model, choices, error, parts)
    assert model.calls == 1


def assert_refused(model, choices, error, parts):
    with unchanged(model), pytest.raises(error) as refusal:
        gradcam_fast.explain(model, **{"images": IMAGES, "layer": "features.3"} | choices)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize(
    "choices",
    [
        {"layer": "features.33"},
        {"method": "grad-cam"},
        {"normalize": "min-max"},
        {"size": 0},
        {"output": "logits"},
    ],
)
def test_an_explainer_refuses_wrong_choices_when_it_is_made(choices):
    with pytest.raises((TypeError, ValueError), match=next(iter(choices))):
        gradcam_fast.Explainer(ConvNet(), **choices)


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("never_run", ("never_run", "run", "layer=")),
        ("thrown_away", ("thrown_away", "depend", "layer=")),
        ("detached", ("detached", "depend", "layer=")),
    ],
)
def test_a_layer_without_influence_on_the_score_is_refused(layer, parts):
    model = DeadEnds()
    with unchanged(model), pytest.raises(RuntimeError) as refusal:
        gradcam_fast.explain(model, IMAGES, layer=layer)
    assert_says(refusal, RuntimeError, parts)


@pytest.mark.parametrize("layer", ["head.4", "head.1", "head"])
def test_a_layer_without_positions_is_refused(layer):
    with pytest.raises(ValueError) as refusal:
        gradcam_fast.explain(ConvNet(), IMAGES, layer=layer)
    assert_says(refusal, ValueError, (layer, "(3, "))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (lambda images: images, ("function", "nn.Module")),
        ("resnet18", ("str", "nn.Module")),
        (ConvNet, ("type", "nn.Module")),
        (None, ("NoneType", "nn.Module")),
    ],
)
def test_a_model_that_is_no_module_is_refused(model, parts):
    with pytest.raises(TypeError) as refusal:
        gradcam_fast.explain(model, IMAGES)
    assert_says(refusal, TypeError, parts)


def test_a_scripted_model_is_refused_because_no_hook_reaches_inside():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), IMAGES)
    with pytest.raises(TypeError) as refusal:
        gradcam_fast.explain(traced, IMAGES, layer="0")
    assert_says(refusal, TypeError, ("TopLevelTracedModule", "nn.Module"))


def test_a_model_on_another_device_than_the_images_is_refused():
    model = ConvNet().to("meta")
    with pytest.raises(ValueError) as refusal:
        gradcam_fast.explain(model, IMAGES, layer="features.3")
    assert_says(refusal, ValueError, ("cpu", "meta", "move"))
    assert model.calls == 0


@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        (lambda logits: {"a": logits, "b": logits}, ("dict", "'a'", "'b'", "output=")),
        (lambda logits: logits[:, :, None, None].expand(-1, -1, 4, 4), ("(3, 5, 4, 4)", "target", "callable")),
        (lambda logits: "logits", ("str", "output=")),
        (lambda logits: logits[:2], ("(2, 5)", "3")),
    ],
)
def test_an_output_without_clear_logits_is_refused(wrap, parts):
    with pytest.raises((TypeError, ValueError)) as refusal:
        gradcam_fast.explain(Wrapped(wrap), IMAGES, layer="features.3")
    assert_says(refusal, refusal.type, parts)
