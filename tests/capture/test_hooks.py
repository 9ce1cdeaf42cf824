"""The capture hook: the last call of a layer counts, the graph begins there, a layer without influence is refused."""

import pytest
import torch
from support.naive import full_graph, heatmaps, highest
from support.networks import ConvNet, DeadEnds, Repeating
from support.tolerances import SAME_INPUTS
from support.unchanged import unchanged

import gradcam_fast

TOLERANCE = SAME_INPUTS[torch.float32]


@pytest.mark.parametrize("layer", ["block", "relu"])
@pytest.mark.parametrize("times", [[1, 1], [3, 3, 3], [3, 1, 2, 4, 3], [1, 4, 1, 4]])
def test_the_last_call_counts_however_often_the_layer_ran_before(times, layer, images):
    model = Repeating(1)
    for number in times:
        model.times = number
        explanation = gradcam_fast.explain(model, images, layer=layer)
        expected = heatmaps(model, layer, images, highest)
        torch.testing.assert_close(explanation.heatmap.double(), expected, rtol=0, atol=TOLERANCE)


def test_an_explainer_counts_calls_anew_each_time(images):
    model = Repeating(2)
    explainer = gradcam_fast.Explainer(model, layer="relu")
    for number in (2, 2, 1, 3, 2):
        model.times = number
        expected = heatmaps(model, "relu", images, highest)
        torch.testing.assert_close(explainer(images).heatmap.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layer", ["block", "relu"])
def test_repeated_calls_give_the_bits_of_the_full_graph(layer, images):
    model = Repeating(3)
    activations, gradients, logits = full_graph(model, layer, images, highest)
    expected, _, _ = gradcam_fast.cam(activations, gradients, (8, 8), normalize="none", relu=False)
    for _ in range(3):
        explanation = gradcam_fast.explain(model, images, layer=layer, size=(8, 8), normalize="none", relu=False)
        assert torch.equal(explanation.heatmap, expected) and torch.equal(explanation.logits, logits)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("layer", ["never_run", "thrown_away", "detached"])
def test_a_layer_without_influence_is_named_in_the_error(layer, frozen, images):
    model = DeadEnds().requires_grad_(not frozen)
    with unchanged(model), pytest.raises(RuntimeError, match=layer):
        gradcam_fast.explain(model, images, layer=layer)


def test_a_layer_that_did_not_run_this_time_is_refused_although_it_ran_before(images):
    model = Repeating(2)
    gradcam_fast.explain(model, images, layer="block")
    model.times = 0
    with unchanged(model), pytest.raises(RuntimeError, match="block"):
        gradcam_fast.explain(model, images, layer="block")


def test_only_modules_behind_the_layer_get_a_graph(images):
    model, graphs = ConvNet(), {}
    for name in ("0", "2", "4"):
        model.features.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: graphs.update({name: output.requires_grad})
        )
    gradcam_fast.explain(model, images.requires_grad_(), layer="features.3")
    assert graphs == {"0": False, "2": False, "4": True}


def test_the_graph_ends_at_the_layer_and_not_at_the_images(images):
    model, nodes = ConvNet(), []
    model.at_head = lambda maps: nodes.append(graph_nodes(maps.grad_fn))
    gradcam_fast.explain(model, images, layer="features.3")
    assert "ConvolutionBackward0" not in nodes[0] and "ReluBackward0" in nodes[0]


def graph_nodes(node):
    return {node.name()}.union(*(graph_nodes(parent) for parent, _ in node.next_functions if parent))
