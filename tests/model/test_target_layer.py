"""Layers are named by a dotted name, by any of several names, or by the module itself."""

import pytest
import torch
from support.networks import ConvNet
from support.refusals import assert_says
from torch import nn

import gradcam_fast
from gradcam_fast._model.target_layer import TargetLayer, resolve_layers


def test_a_layer_may_be_given_as_a_module(images):
    model = ConvNet()
    by_module = gradcam_fast.explain(model, images, layer=model.features[3])
    by_name = gradcam_fast.explain(model, images, layer="features.3")
    assert by_module.layer == by_name.layer == "features.3"
    assert torch.equal(by_module.heatmap, by_name.heatmap)


def test_a_module_with_two_names_is_explained_under_either(images):
    model = ConvNet()
    model.alias = model.features[3]
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    assert torch.equal(gradcam_fast.explain(model, images, layer="alias").heatmap, expected)


def test_names_and_modules_resolve_to_target_layers_in_the_callers_order():
    model = ConvNet()
    layers = resolve_layers(model, [model.features[3], "features.0", "features"])
    assert layers == (
        TargetLayer("features.3", model.features[3]),
        TargetLayer("features.0", model.features[0]),
        TargetLayer("features", model.features),
    )
    assert resolve_layers(model, "head.4") == (TargetLayer("head.4", model.head[4]),)
    assert resolve_layers(model, None) is None


def test_layers_inside_compile_wrappers_have_their_eager_names_and_modules():
    model = ConvNet()
    layer = model.features[3]
    model.features = torch.compile(model.features, backend="eager")
    for choice in ("features.3", layer):
        assert resolve_layers(model, choice) == (TargetLayer("features.3", layer),)


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("feature.3", ValueError, r"layer 'feature\.3' is not in ConvNet; nearest names: 'features\.3'"),
        ("", ValueError, "layer '' is not in ConvNet"),
        ([], ValueError, r"layer=\[\] names no layer"),
        (3, TypeError, "layer=3 is an? int; give a dotted name"),
        (["features", 3], TypeError, "layer=3 is an? int"),
    ],
)
def test_a_choice_that_names_no_layer_is_refused_with_the_nearest_names(layer, error, message):
    with pytest.raises(error, match=message):
        resolve_layers(ConvNet(), layer)


def test_a_module_outside_the_model_and_the_model_itself_are_refused():
    model = ConvNet()
    with pytest.raises(ValueError, match="layer ConvNet is the model itself; give a module inside ConvNet"):
        resolve_layers(model, model)
    with pytest.raises(ValueError, match="layer Conv2d is not a module of this model"):
        resolve_layers(model, ConvNet().features[0])


def test_a_container_with_a_forward_of_its_own_runs_and_is_explained(images):
    class Stages(nn.ModuleDict):
        def forward(self, maps):
            return self["second"](self["first"](maps))

    model = nn.Sequential(
        Stages({"first": nn.Conv2d(3, 4, 3), "second": nn.ReLU()}),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    for layer in ("0", None):
        assert gradcam_fast.explain(model, images, layer=layer, relu=False).layer == "0"


@pytest.mark.parametrize(
    ("container", "parts"),
    [
        (nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)]), ("'blocks' is a ModuleList", "use 'blocks.1'")),
        (nn.ModuleDict({"a": nn.Conv2d(3, 4, 3)}), ("'blocks' is a ModuleDict", "use 'blocks.a'")),
        (nn.ModuleList(), ("'blocks' is a ModuleList", "never runs", "name a layer that runs")),
    ],
)
def test_a_container_that_never_runs_is_refused_with_a_layer_inside(container, parts):
    model = nn.Sequential()
    model.blocks = container
    for layer in ("blocks", container):
        with pytest.raises(ValueError) as refusal:
            resolve_layers(model, layer)
        assert_says(refusal, ValueError, parts)
