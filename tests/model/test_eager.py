"""Compiled models: whichever part was compiled, and however, the answer is the eager one.

Knows nothing of code generation: the "eager" backend traces as every other one does and emits no code.
"""

import subprocess
import sys

import pytest
import torch
from support.networks import stateless
from support.unchanged import unchanged

import gradcam_fast


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
def test_a_compiled_model_gives_the_eager_answer(compiled, warm, images):
    model = stateless()
    expected = gradcam_fast.explain(model, images, topk=2, layer="features.3")
    model = compiled(model)
    if warm:  # what was compiled without a hook may run again without looking for one
        with torch.no_grad():
            assert torch.equal(model(images), expected.logits)
    with unchanged(model):
        found = gradcam_fast.explain(model, images, topk=2, layer="features.3")
    assert torch.equal(found.heatmap, expected.heatmap) and torch.equal(found.logits, expected.logits)
    assert found.layer == "features.3"
    with torch.no_grad():
        assert torch.equal(model(images), expected.logits)


@pytest.mark.parametrize("compiled", [whole, in_place])
def test_the_layer_of_a_compiled_model_may_be_given_as_the_module(compiled, images):
    model = stateless()
    layer = model.features[3]
    expected = gradcam_fast.explain(model, images, layer=layer).heatmap
    assert torch.equal(gradcam_fast.explain(compiled(model), images, layer=layer).heatmap, expected)


def test_a_compiled_model_finds_the_layer_that_the_eager_one_finds(images):
    model = stateless()
    expected = gradcam_fast.explain(model, images)
    found = gradcam_fast.explain(whole(model), images)
    assert found.layer == expected.layer and torch.equal(found.heatmap, expected.heatmap)


def test_what_was_compiled_runs_compiled_again_afterwards(images):
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
def test_whoever_compiles_nothing_does_not_pay_for_the_compiler(last, choices):
    """Importing it takes a second, and from then on every explanation has to hold it off."""
    code = (
        "import sys, torch, gradcam_fast\n"
        f"model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), {last}, torch.nn.Flatten())\n"
        f"gradcam_fast.explain(model, torch.randn(2, 3, 8, 8), {choices})\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
