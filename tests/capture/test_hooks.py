"""Modules that run several times, layers that never run or do not matter: the last run counts, the rest is said.

Knows nothing of how many runs an implementation expects; it is tried first, second and third, with other numbers.
"""

import warnings

import pytest
import torch
from support.naive import full_graph, heatmaps, highest
from support.networks import ConvNet, DeadEnds, Repeating
from support.tolerances import SAME_INPUTS
from support.unchanged import unchanged

import gradcam_fast

SCALED = SAME_INPUTS[torch.float32]


@pytest.mark.parametrize("layer", ["block", "relu"])
@pytest.mark.parametrize("times", [[1, 1], [3, 3, 3], [3, 1, 2, 4, 3], [1, 4, 1, 4]])
def test_the_last_run_counts_however_many_runs_there_were_before(times, layer, images):
    model = Repeating(1)
    for number in times:
        model.times = number
        found = gradcam_fast.explain(model, images, layer=layer)
        expected = heatmaps(model, layer, images, highest)
        torch.testing.assert_close(found.heatmap.double(), expected, rtol=0, atol=SCALED)


def test_an_explainer_counts_runs_anew_each_time(images):
    model = Repeating(2)
    explainer = gradcam_fast.Explainer(model, layer="relu")
    for number in (2, 2, 1, 3, 2):
        model.times = number
        expected = heatmaps(model, "relu", images, highest)
        torch.testing.assert_close(explainer(images).heatmap.double(), expected, rtol=0, atol=SCALED)


@pytest.mark.parametrize("layer", ["block", "relu"])
def test_repeated_runs_give_the_bits_of_the_full_graph(layer, images):
    model = Repeating(3)
    activations, gradients, logits = full_graph(model, layer, images, highest)
    expected, _, _ = gradcam_fast.cam(activations, gradients, (8, 8), normalize="none", relu=False)
    for _ in range(3):
        found = gradcam_fast.explain(model, images, layer=layer, size=(8, 8), normalize="none", relu=False)
        assert torch.equal(found.heatmap, expected) and torch.equal(found.logits, logits)


def test_one_module_under_two_names_is_explained_under_either(images):
    model = ConvNet()
    model.alias = model.features[3]
    expected = gradcam_fast.explain(model, images, layer="features.3").heatmap
    assert torch.equal(gradcam_fast.explain(model, images, layer="alias").heatmap, expected)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("layer", ["never_run", "thrown_away", "detached"])
def test_a_layer_that_plays_no_part_is_named_in_an_error(layer, frozen, images):
    model = DeadEnds().requires_grad_(not frozen)
    with unchanged(model), pytest.raises(RuntimeError, match=layer):
        gradcam_fast.explain(model, images, layer=layer)


def test_a_layer_that_did_not_run_this_time_is_an_error_although_it_ran_before(images):
    model = Repeating(2)
    gradcam_fast.explain(model, images, layer="block")
    model.times = 0
    with unchanged(model), pytest.raises(RuntimeError, match="block"):
        gradcam_fast.explain(model, images, layer="block")


def test_a_vanishing_gradient_gives_an_invalid_map_and_a_warning_that_names_the_layer(images):
    model = ConvNet()
    torch.nn.init.zeros_(model.head[4].weight)
    with pytest.warns(UserWarning, match=r"features\.3"):
        found = gradcam_fast.explain(model, images, layer="features.3")
    assert not found.valid.any() and not found.heatmap.any()


def test_a_gradient_that_vanishes_for_one_image_only_marks_that_image(images):
    model = ConvNet()
    alone = gradcam_fast.explain(model, images, target=1, layer="features.3").heatmap
    muted = gradcam_fast.explain(
        model, images, target=lambda output: output[:, 1] * torch.tensor([1.0, 0.0, 1.0]), layer="features.3"
    )
    assert muted.valid.tolist() == [True, False, True]
    assert torch.equal(muted.heatmap[[0, 2]], alone[[0, 2]]) and not muted.heatmap[1].any()


def test_an_ordinary_explanation_warns_of_nothing(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradcam_fast.explain(ConvNet(), images, layer="features.3")
    assert found.valid.all()
