"""Compiled models have the explanation of the eager model, whichever part was compiled and however.

Scripted parts and modules that compute weights are no layers. The backend "eager" traces like any other but generates
no code.
"""

import subprocess
import sys

import pytest
import torch
from support.checkpointed import assert_same, explained, recomputed, twins
from support.fake_recorder import graph_explainer
from support.networks import ConvNet, conv_relu, pooled_head, stateless
from support.torchscript import scripted, traced
from support.unchanged import unchanged
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast._model.eager import eager_module, eager_modules, force_eager


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def trunk(model):
    model.features = torch.compile(model.features, backend="eager")
    return model


def trunk_in_place(model):
    model.features.compile(backend="eager")
    return model


def the_layer_itself(model):
    model.features[3].compile(backend="eager")
    return model


def head(model):
    model.head = torch.compile(model.head, backend="eager")
    return model


def forward_method(model):
    model.features.forward = torch.compile(model.features.forward, backend="eager")
    return model


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("compiled", [whole, in_place, trunk, trunk_in_place, the_layer_itself, head, forward_method])
def test_a_compiled_model_has_the_explanation_of_the_eager_one(compiled, warm, images):
    model = stateless()
    expected = gradcam_fast.explain(model, images, topk=2, layer="features.3")
    model = compiled(model)
    if warm:  # code compiled without a hook may run again without checking for hooks
        with torch.no_grad():
            assert torch.equal(model(images), expected.logits)
    with unchanged(model):
        explanation = gradcam_fast.explain(model, images, topk=2, layer="features.3")
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)
    assert explanation.layer == "features.3"
    with torch.no_grad():
        assert torch.equal(model(images), expected.logits)


@pytest.mark.parametrize("compiled", [whole, in_place])
def test_the_layer_of_a_compiled_model_may_be_given_as_the_module(compiled, images):
    model = stateless()
    layer = model.features[3]
    expected = gradcam_fast.explain(model, images, layer=layer).heatmap
    assert torch.equal(gradcam_fast.explain(compiled(model), images, layer=layer).heatmap, expected)


def test_the_layer_found_is_the_same_in_a_compiled_model(images):
    model = stateless()
    expected = gradcam_fast.explain(model, images)
    explanation = gradcam_fast.explain(whole(model), images)
    assert explanation.layer == expected.layer and torch.equal(explanation.heatmap, expected.heatmap)


def test_a_compiled_model_runs_compiled_again_afterwards(images):
    runs = []

    def counting(graph, _):
        return lambda *inputs: (runs.append(1), graph.forward(*inputs))[1]

    model = torch.compile(stateless(), backend=counting)
    with torch.no_grad():
        model(images)
        runs.clear()
        gradcam_fast.explain(model, images, layer="features.3")
        assert not runs
        model(images)
    assert runs


@pytest.mark.parametrize(
    ("last", "choices"),
    [
        ("torch.nn.AdaptiveAvgPool2d(1)", "topk=2"),
        ("torch.nn.Flatten(2)", "topk=2, layer='1', tokens=lambda maps: maps.unflatten(-1, (6, 6))"),
    ],
    ids=["maps", "tokens"],
)
def test_an_explanation_of_an_eager_model_does_not_import_the_compiler(last, choices):
    """Importing it takes a second, and from then on every explanation has to turn it off."""
    code = (
        "import sys, torch, gradcam_fast\n"
        f"model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), {last}, torch.nn.Flatten())\n"
        f"gradcam_fast.explain(model, torch.randn(2, 3, 8, 8), {choices})\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("topk", [None, 3])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("layer", ["before", "block.0", "behind", None])
def test_a_compiled_checkpointed_part_has_the_explanation_of_the_eager_one(layer, warm, in_place, topk, images):
    torch._dynamo.reset()
    plain, model = twins(recomputed)
    expected = explained(plain, images, layer=layer, topk=topk)
    if in_place:
        model.block.compile(backend="aot_eager")
    else:
        model.block = torch.compile(model.block, backend="aot_eager")
    if warm:
        model(images).sum().backward()
    with unchanged(model):
        assert_same(explained(model, images, layer=layer, topk=topk), expected)


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_a_model_with_a_scripted_part_is_explained_at_its_other_layers(form, images):
    model = ConvNet()
    model = nn.Sequential(model.features[:3], model.features[3:], model.head)
    expected = explain(model, images, topk=2, relu=False)
    model[0] = scripted(model[0]) if form == "scripted" else traced(model[0], images)
    for training in (False, True):
        model.train(training)
        with unchanged(model):
            explanation = explain(model, images, topk=2, relu=False)
        assert explanation.layer == expected.layer
        if not training:
            torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"layer '0.0' is not in Sequential"):
        explain(model, images, layer="0.0")


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_a_model_with_a_scripted_part_is_not_recorded_as_a_cuda_graph(form, images):
    model = ConvNet()
    model = nn.Sequential(model.features[:3], model.features[3:], model.head).eval()
    expected = explain(model, images, layer="1")
    model[0] = scripted(model[0]) if form == "scripted" else traced(model[0], images)
    explainer = graph_explainer(model)
    with pytest.warns(RuntimeWarning, match="runs eagerly: module '0' is scripted"):
        for _ in range(3):
            torch.testing.assert_close(explainer(images).heatmap, expected.heatmap, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_modules_that_compute_a_parametrized_weight_are_no_layers(batch):
    torch.manual_seed(0)
    model = nn.Sequential(conv_relu(), weight_norm(nn.Conv2d(8, 8, 3)), pooled_head(8)).eval()
    explanation = explain(model, torch.randn(batch, 3, 12, 12), relu=False)
    assert explanation.layer == "1"
    with pytest.raises(ValueError, match="is not in Sequential"):
        explain(model, torch.randn(batch, 3, 12, 12), layer="1.parametrizations.weight")


def test_eager_modules_have_the_names_and_modules_of_the_model_before_it_was_compiled():
    model = stateless()
    expected = eager_modules(model)
    assert list(expected)[:3] == ["features", "features.0", "features.1"] and "" not in expected
    model.features[3] = torch.compile(model.features[3], backend="eager")
    model.head = torch.compile(model.head, backend="eager")
    assert eager_modules(model) == expected
    assert eager_module(model.head) is expected["head"] and eager_module(expected["head"]) is expected["head"]


def test_a_module_with_two_names_is_listed_under_both_and_scripted_parts_are_left_out(images):
    model = stateless()
    model.alias = model.features[3]
    model.part = traced(torch.nn.Sequential(torch.nn.Flatten()), images)
    modules = eager_modules(model)
    assert modules["alias"] is modules["features.3"] is model.features[3]
    assert not [name for name in modules if name.startswith("part")]


def test_compiled_code_runs_eagerly_inside_force_eager_and_compiled_again_behind_the_outermost(images):
    runs = []

    def counting(graph, _):
        return lambda *inputs: (runs.append(1), graph.forward(*inputs))[1]

    model = torch.compile(stateless(), backend=counting)
    with torch.no_grad():
        expected = model(images)
        runs.clear()
        with force_eager():
            with pytest.raises(ZeroDivisionError), force_eager():
                1 / 0  # noqa: B018
            assert torch.equal(model(images), expected)
        assert not runs
        assert torch.equal(model(images), expected) and runs == [1]
