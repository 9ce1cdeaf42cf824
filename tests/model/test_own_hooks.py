"""Hooks of an explanation run in that explanation only: not in predictions and explanations inside it."""

import pytest
import torch
from support.networks import ConvNet
from support.unchanged import unchanged

import gradcam_fast


@pytest.mark.parametrize("what", ["predict", "explain", "explain another layer", "search"])
@pytest.mark.parametrize("place", ["", "features.0", "features.3", "head", "head.4"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("layer", ["features.3", None])
def test_a_hook_of_the_model_may_run_and_explain_the_model(what, place, kind, layer, images):
    model, others = ConvNet(), torch.randn(2, 3, 16, 16)
    inner = {
        "predict": lambda: model(others).detach(),
        "explain": lambda: gradcam_fast.explain(model, others, layer="features.3").heatmap,
        "explain another layer": lambda: gradcam_fast.explain(model, others, layer="features.0").heatmap,
        "search": lambda: gradcam_fast.layers.list_layers(model, others)[0].name,
    }[what]
    expected_inside = inner()
    inside, busy = [], []

    def hook(*_):
        if not busy:
            busy.append(True)
            inside.append(inner())
            busy.pop()

    getattr(model.get_submodule(place), kind)(hook)
    expected = gradcam_fast.explain(model_without_hooks(model), images, layer=layer)
    inside.clear()
    with unchanged(model):
        explanation = gradcam_fast.explain(model, images, layer=layer)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=0, atol=1e-5)
    assert explanation.layer == expected.layer
    assert inside and all(
        result == expected_inside if isinstance(result, str) else torch.equal(result, expected_inside)
        for result in inside
    )


@pytest.mark.parametrize("call", [0, -1, "all"])
@pytest.mark.parametrize("place", ["", "features.0", "features.3", "head"])
def test_a_prediction_inside_is_no_call_of_the_layer(place, call, images):
    model, others, busy = ConvNet(), torch.randn(2, 3, 16, 16), []
    explainer = gradcam_fast.Explainer(model, layer="features.3", call=call)
    expected = explainer(images).heatmap

    def predict(*_):
        if not busy:
            busy.append(True)
            model(others)
            busy.pop()

    model.get_submodule(place).register_forward_pre_hook(predict)
    torch.testing.assert_close(explainer(images).heatmap, expected, rtol=0, atol=1e-5)


def model_without_hooks(model):
    bare = ConvNet()
    bare.load_state_dict(model.state_dict())
    return bare
