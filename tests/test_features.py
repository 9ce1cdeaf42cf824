"""`feature_maps` returns the activations and gradients of a full graph, of one layer or several, from one forward."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.naive import full_graph, highest, of_class
from support.networks import ConvNet, Repeating, Unbatchable
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast.features import feature_maps


def test_activations_and_gradients_equal_those_of_the_full_graph(images):
    model = ConvNet()
    for layer in ("features.0", "features.3", "features"):
        maps = feature_maps(model, images, layer=layer)
        activations, gradients, _ = full_graph(model, layer, images, highest)
        assert maps.layer == layer
        torch.testing.assert_close(maps.activations, activations)
        torch.testing.assert_close(maps.gradients, gradients)


@pytest.mark.parametrize("network", [ConvNet, Unbatchable])
def test_several_targets_have_the_gradients_of_each_target(network, images):
    model = network()
    maps = feature_maps(model, images, layer="features.3", target=[[0, 4]] * 3)
    for k, target in enumerate((0, 4)):
        activations, gradients, _ = full_graph(model, "features.3", images, of_class(target))
        torch.testing.assert_close(maps.activations, activations)
        torch.testing.assert_close(maps.gradients[:, k], gradients)


@pytest.mark.parametrize("choices", [{}, {"topk": 2}, {"target": lambda out: out.sum(1)}])
def test_cam_turns_feature_maps_into_the_heatmap_of_explain(choices, images):
    model = ConvNet()
    for layer in (None, "features.1"):
        maps = feature_maps(model, images, layer=layer, **choices)
        explanation = gradcam_fast.explain(model, images, layer=layer, **choices)
        heatmap, _, _ = gradcam_fast.cam(maps.activations, maps.gradients, (16, 16))
        assert maps.layer == explanation.layer
        assert torch.equal(heatmap, explanation.heatmap) and explanation.valid.any()


def test_feature_maps_of_several_layers_come_from_one_forward_in_the_callers_order(images):
    model = ConvNet()
    layers = ["features.3", "features.0", model.features[3]]
    maps_of_layers = feature_maps(model, images, layer=layers)
    assert model.calls == 1
    assert [maps.layer for maps in maps_of_layers] == ["features.3", "features.0", "features.3"]
    for maps in maps_of_layers:
        alone = feature_maps(model, images, layer=maps.layer)
        torch.testing.assert_close(maps.activations, alone.activations)
        torch.testing.assert_close(maps.gradients, alone.gradients)
    assert [maps.layer for maps in feature_maps(model, images, layer=["features.0"])] == ["features.0"]


class Patches(nn.Module):
    """Cuts images into patches: tokens (B,1+16,6) with a class token in front; the middle layer is a norm."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, stride=4)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)
        self.eval()

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        return self.head(tokens.square().mean(1))


def test_tokens_are_returned_as_planes(images):
    model = Patches()
    maps = feature_maps(model, images, layer="norm")
    activations, gradients, _ = full_graph(model, "norm", images, highest)
    for planes, tokens in ((maps.activations, activations), (maps.gradients, gradients)):
        torch.testing.assert_close(planes, tokens[:, 1:].transpose(1, 2).reshape(3, 6, 4, 4))


def test_the_model_stays_unchanged_and_feature_maps_do_not_require_grad(images):
    model = ConvNet().train()
    with unchanged(model):
        maps_of_layers = feature_maps(model, images, layer=["features.0", "features.3"], topk=2)
    assert not any(tensor.requires_grad for maps in maps_of_layers for tensor in (maps.activations, maps.gradients))


def test_feature_maps_are_the_same_inside_no_grad_and_inference_mode(images):
    model = ConvNet()
    expected = feature_maps(model, images, layer="features.3").gradients
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(feature_maps(model, images, layer="features.3").gradients, expected)


def test_the_last_call_of_a_layer_counts(images):
    model = Repeating(3)
    maps = feature_maps(model, images, layer="block")
    activations, gradients, _ = full_graph(model, "block", images, highest)
    torch.testing.assert_close(maps.activations, activations)
    torch.testing.assert_close(maps.gradients, gradients)


@pytest.mark.parametrize(("call", "place"), [(0, 0), (1, 1), (-1, 2), (None, 2)])
def test_call_names_the_call_of_a_layer(call, place, images):
    model, kept = Repeating(3), []
    maps = feature_maps(model, images, layer="block", call=call)
    handle = model.block.register_forward_hook(lambda _, __, output: kept.append(output) or output.clone())
    gradients = torch.autograd.grad(highest(model(images)).sum(), kept)
    handle.remove()
    torch.testing.assert_close(maps.activations, kept[place].detach())
    torch.testing.assert_close(maps.gradients, gradients[place])
    every = feature_maps(model, images, layer="block", call="all")
    torch.testing.assert_close(every.activations, torch.stack(kept, 1).flatten(0, 1).detach())
    torch.testing.assert_close(every.gradients, torch.stack(gradients, 1).flatten(0, 1))


class TwoTrunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 3, 2), nn.Linear(10, 5)

    def forward(self, images):
        trunks = [self.left(images).relu(), self.right(images).relu()]
        return self.head(torch.cat([maps.mean((2, 3)) for maps in trunks], 1))


def test_all_layers_that_explain_finds_are_returned(images):
    maps = feature_maps(TwoTrunks(), images)
    assert tuple(of_layer.layer for of_layer in maps) == gradcam_fast.explain(TwoTrunks(), images).layer
    assert [of_layer.activations.shape[1] for of_layer in maps] == [6, 4]


def test_feature_maps_print_their_shapes(images):
    maps = feature_maps(ConvNet(), images, layer="features.3", topk=2)
    assert repr(maps) == "FeatureMaps(activations (3, 12, 4, 4) at features.3, gradients (3, 2, 12, 4, 4))"


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"layer": "features.9"}, ValueError, "layer 'features.9' is not in ConvNet"),
        ({"layer": []}, ValueError, "names no layer"),
        ({"layer": "head.4"}, ValueError, r"layer 'head.4' returns shape \(3, 5\) for a batch of 3"),
        ({"target": 9, "layer": "features"}, ValueError, "target 9 is out of range"),
        ({"tokens": "few"}, ValueError, "tokens='few' is no grid"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(choices, error, message, images):
    with pytest.raises(error, match=message):
        feature_maps(ConvNet(), images, **choices)


def test_importing_the_package_does_not_import_pillow():
    code = "import sys, gradcam_fast; print('PIL' in sys.modules, gradcam_fast.features.feature_maps.__name__)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(gradcam_fast.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == ["False", "feature_maps"]
    with pytest.raises(AttributeError, match="no attribute 'figurs'"):
        gradcam_fast.figurs  # noqa: B018


def test_feature_maps_hold_the_logits_of_the_same_forward(images):
    model = ConvNet()
    for maps in feature_maps(model, images, layer=["features.3", "features.0"]):
        assert torch.equal(maps.logits, model(images)) and not maps.logits.requires_grad


def test_feature_maps_are_of_the_call_that_is_named(images):
    model, seen = Repeating(times=3), []
    model.block.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    for call in (0, 1, -1):
        seen.clear()
        maps = feature_maps(model, images, layer="block", call=call)
        assert torch.equal(maps.activations, seen[call])
        assert torch.equal(
            gradcam_fast.cam(maps.activations, maps.gradients, 16)[0],
            gradcam_fast.explain(model, images, layer="block", call=call).heatmap,
        )


def test_feature_maps_without_gradients_take_no_graph_and_any_output(images):
    class Detector(ConvNet):
        def forward(self, images):
            return [{"boxes": maps.detach()} for maps in self.features(images)]

    model = Detector()
    maps = feature_maps(model, images, layer="features", gradients=False)
    assert maps.gradients is None and torch.equal(maps.activations, model.features(images))
    assert len(maps.logits) == 3 and "gradients None" in repr(maps)
