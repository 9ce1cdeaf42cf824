"""What `explain` captures: the very activations and gradients of the full graph, from one forward, in every mode.

Knows nothing of how maps are computed: the same `cam` is given what the full graph holds, or a naive map is compared.
"""

import functools

import pytest
import torch
from support.naive import full_graph, heatmaps, highest, of_class
from support.networks import ConvNet, Repeating, TwoInputs
from support.tolerances import SAME_INPUTS

import gradcam_fast
from gradcam_fast.features import feature_maps

METHODS = ["gradcam", "gradcam++", "xgradcam", "hirescam", "elementwise", "layercam"]
SCALED = SAME_INPUTS[torch.float32]


def assert_captured_to_the_bit(model, layer, images, method):
    """And what is captured is what is explained: raw maps at the layer's own size are compared."""
    activations, gradients, logits = full_graph(model, layer, images, highest)
    maps = feature_maps(model, images, layer=layer)
    assert torch.equal(maps.activations, activations) and torch.equal(maps.gradients, gradients)
    choices = {"size": activations.shape[-2:], "method": method, "normalize": "none", "relu": False}
    found = gradcam_fast.explain(model, images, layer=layer, **choices)
    # How gradients lie in memory decides in which order they are summed up, so the full graph's own will not do.
    expected, low, high = gradcam_fast.cam(maps.activations, maps.gradients, **choices)
    assert torch.equal(found.heatmap, expected) and expected.abs().max() > 0
    assert torch.equal(found.raw_min, low) and torch.equal(found.raw_max, high)
    assert torch.equal(found.logits, logits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.2", "features.3", "features"])
def test_any_layer_is_captured_as_in_the_full_graph_whatever_inplace_relu_follows_it(layer, method, images):
    assert_captured_to_the_bit(ConvNet(), layer, images, method)


@pytest.fixture(scope="module")
def real():
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    return functools.cache(lambda name: getattr(models, name)().eval())


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("resnet18", "layer4"),
        ("resnet18", "layer3.0"),
        ("resnet18", "layer4.1.bn2"),  # followed by an in-place addition, then an in-place ReLU
        ("resnet18", "layer4.1.relu"),  # runs twice per forward
        ("densenet121", "features"),  # followed by a functional in-place ReLU
        ("densenet121", "features.transition3.conv"),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_real_architecture_is_captured_as_in_the_full_graph(network, layer, layout, real):
    images = torch.randn(2, 3, 64, 64).to(memory_format=layout)
    # Of all methods HiResCAM looks at every single activation and gradient.
    assert_captured_to_the_bit(real(network), layer, images, "hirescam")


def test_the_map_is_the_textbooks(images):
    model = ConvNet()
    found = gradcam_fast.explain(model, images, layer="features.3").heatmap
    expected = heatmaps(model, "features.3", images, highest)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=SCALED)


def test_a_layer_may_be_given_as_the_module_itself(images):
    model = ConvNet()
    by_module = gradcam_fast.explain(model, images, layer=model.features[3])
    by_name = gradcam_fast.explain(model, images, layer="features.3")
    assert by_module.layer == by_name.layer == "features.3"
    assert torch.equal(by_module.heatmap, by_name.heatmap)


@pytest.mark.parametrize(
    "names", [["features.1", "features.3"], ["features.3", "features.1"], ["features.3", "features"]]
)
def test_maps_of_several_layers_are_averaged(names, images):
    assert_averaged(ConvNet(), names, images)


def test_the_order_of_the_layers_changes_no_bit(images):
    model, names = ConvNet(), ["features.0", "features.1", "features.2", "features.3"]
    forwards, backwards = (gradcam_fast.explain(model, images, layer=order) for order in (names, names[::-1]))
    assert torch.equal(forwards.heatmap, backwards.heatmap)
    assert backwards.layer == tuple(names[::-1])


@pytest.mark.parametrize("times", [1, 3])
def test_layers_that_run_in_turn_are_averaged_too(times, images):
    model = Repeating(times)
    for _ in range(3):
        assert_averaged(model, ["relu", "stem", "block"], images)


def assert_averaged(model, names, images):
    found = gradcam_fast.explain(model, images, layer=names, normalize="none")
    single = [gradcam_fast.explain(model, images, layer=name, normalize="none").heatmap for name in names]
    assert found.layer == tuple(names)
    torch.testing.assert_close(found.heatmap, torch.stack(single).mean(0), rtol=SCALED, atol=1e-7)


def test_prediction_and_explanation_come_from_one_forward(images):
    model = ConvNet()
    with torch.no_grad():
        logits = model(images)
    model.runs.clear()
    found = gradcam_fast.explain(model, images, topk=3, layer="features.3")
    assert model.calls == 1
    assert torch.equal(found.logits, logits)


def test_only_what_lies_behind_the_layer_gets_a_graph(images):
    model, graphs = ConvNet(), {}
    for name in ("0", "2", "4"):
        model.features.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: graphs.update({name: output.requires_grad})
        )
    gradcam_fast.explain(model, images.requires_grad_(), layer="features.3")
    assert graphs == {"0": False, "2": False, "4": True}


def test_the_graph_ends_at_the_layer_and_not_at_the_images(images):
    model, seen = ConvNet(), []
    model.at_head = lambda maps: seen.append(graph_nodes(maps.grad_fn))
    gradcam_fast.explain(model, images, layer="features.3")
    assert "ConvolutionBackward0" not in seen[0] and "ReluBackward0" in seen[0]


def graph_nodes(node):
    return {node.name()}.union(*(graph_nodes(parent) for parent, _ in node.next_functions if parent))


def test_nothing_returned_holds_on_to_a_graph(images):
    found = gradcam_fast.explain(ConvNet(), images, layer="features.3")
    for tensor in (found.heatmap, found.logits, found.score, found.raw_min, found.raw_max):
        assert tensor.is_leaf and not tensor.requires_grad


def test_a_layer_that_hands_the_images_on_does_not_mark_them(images):
    model = torch.nn.Sequential(torch.nn.Identity(), ConvNet()).eval()
    assert_captured_to_the_bit(model, "0", images, "hirescam")
    assert images.is_leaf and not images.requires_grad


@pytest.mark.parametrize("pack", [lambda *two: two, lambda *two: dict(zip(("images", "shift"), two, strict=True))])
def test_a_model_of_several_inputs_takes_a_tuple_or_a_dict(pack, images):
    model, shift = TwoInputs(), torch.tensor([1.0, -2.0, 0.5])
    found = gradcam_fast.explain(model, pack(images, shift), target=1, layer="features.3")
    assert torch.equal(found.logits, model(images, shift))
    expected = heatmaps(model, "features.3", images, of_class(1), shift)
    torch.testing.assert_close(found.heatmap.double(), expected, rtol=0, atol=SCALED)


def test_an_own_hook_that_changes_the_layers_output_is_explained_as_the_model_sees_it(images):
    model = ConvNet()
    model.features[3].register_forward_hook(lambda _, __, output: output * 2 + 1)
    assert_captured_to_the_bit(model, "features.3", images, "hirescam")


def test_own_hooks_before_the_layer_and_behind_it_run_as_always(images):
    model, runs = ConvNet(), []
    model.features[0].register_forward_pre_hook(lambda _, inputs: (runs.append("trunk"), (inputs[0] + 1,))[1])
    model.head[4].register_full_backward_hook(lambda *_: runs.append("backward"))
    assert_captured_to_the_bit(model, "features.3", images, "hirescam")
    runs.clear()
    gradcam_fast.explain(model, images, layer="features.3")
    assert runs == ["trunk", "backward"]


def test_an_explainer_gives_what_explain_gives(images):
    model, choices = ConvNet(), {"layer": "features.3", "method": "layercam", "size": (8, 5), "normalize": "max"}
    explainer = gradcam_fast.Explainer(model, **choices)
    for arguments in ({}, {"target": 2}, {"topk": 2}):
        found, expected = explainer(images, **arguments), gradcam_fast.explain(model, images, **arguments, **choices)
        assert torch.equal(found.heatmap, expected.heatmap) and torch.equal(found.target, expected.target)


def test_an_explanation_cannot_be_altered(images):
    found = gradcam_fast.explain(ConvNet(), images, layer="features.3")
    with pytest.raises(AttributeError):
        found.heatmap = None
