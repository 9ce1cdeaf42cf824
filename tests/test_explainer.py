"""`explain` and `Explainer`: several layers, sizes, normalisation, empty batches, vanishing gradients."""

import warnings

import numpy
import pytest
import torch
from support.naive import full_graph, gradcam, highest
from support.networks import ConvNet, Repeating
from support.tolerances import SAME_INPUTS

import gradcam_fast

TOLERANCE = SAME_INPUTS[torch.float32]
LAYER = "features.3"


def test_an_explainer_gives_what_explain_gives(images):
    model, choices = ConvNet(), {"layer": "features.3", "method": "layercam", "size": (8, 5), "normalize": "max"}
    explainer = gradcam_fast.Explainer(model, **choices)
    for arguments in ({}, {"target": 2}, {"topk": 2}):
        explanation = explainer(images, **arguments)
        expected = gradcam_fast.explain(model, images, **arguments, **choices)
        assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.target, expected.target)


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
def test_maps_of_layers_that_run_alternately_are_averaged(times, images):
    model = Repeating(times)
    for _ in range(3):
        assert_averaged(model, ["relu", "stem", "block"], images)


def assert_averaged(model, names, images):
    explanation = gradcam_fast.explain(model, images, layer=names, normalize="none")
    single = [gradcam_fast.explain(model, images, layer=name, normalize="none").heatmap for name in names]
    assert explanation.layer == tuple(names)
    torch.testing.assert_close(explanation.heatmap, torch.stack(single).mean(0), rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("size", [(4, 4), (9, 31), 7])
def test_the_heatmap_has_the_requested_size(size, images):
    model = ConvNet()
    activations, gradients, _ = full_graph(model, LAYER, images, highest)
    expected = gradcam(activations, gradients, (size, size) if isinstance(size, int) else size)
    heatmap = gradcam_fast.explain(model, images, layer=LAYER, size=size).heatmap
    torch.testing.assert_close(heatmap.double(), expected, rtol=0, atol=TOLERANCE)


def test_raw_extremes_undo_the_normalisation(images):
    model = ConvNet()
    scaled = gradcam_fast.explain(model, images, layer=LAYER)
    raw = gradcam_fast.explain(model, images, layer=LAYER, normalize="none")
    low, high = scaled.raw_min[:, None, None], scaled.raw_max[:, None, None]
    torch.testing.assert_close(
        scaled.heatmap * (high - low) + low, raw.heatmap, rtol=TOLERANCE, atol=TOLERANCE * high.max().item()
    )
    by_maximum = gradcam_fast.explain(model, images, layer=LAYER, normalize="max")
    torch.testing.assert_close(by_maximum.heatmap * high, raw.heatmap, rtol=TOLERANCE, atol=0)


def test_numpy_integers_are_accepted(images):
    model = ConvNet()
    expected = gradcam_fast.explain(model, images, topk=2, size=9)
    explanation = gradcam_fast.explain(model, images, topk=numpy.int64(2), size=numpy.int32(9))
    assert torch.equal(explanation.heatmap, expected.heatmap)


def test_an_empty_batch_gives_an_empty_explanation(images):
    explanation = gradcam_fast.explain(ConvNet(), images[:0], topk=2, layer=LAYER)
    assert explanation.heatmap.shape == (0, 2, 16, 16) and explanation.logits.shape == (0, 5)


def test_a_vanishing_gradient_gives_an_invalid_map_and_a_warning_that_names_the_layer(images):
    model = ConvNet()
    torch.nn.init.zeros_(model.head[4].weight)
    with pytest.warns(UserWarning, match=r"features\.3"):
        explanation = gradcam_fast.explain(model, images, layer="features.3")
    assert not explanation.valid.any() and not explanation.heatmap.any()


def test_a_gradient_that_vanishes_for_one_image_invalidates_only_that_image(images):
    model = ConvNet()
    alone = gradcam_fast.explain(model, images, target=1, layer="features.3").heatmap
    muted = gradcam_fast.explain(
        model, images, target=lambda output: output[:, 1] * torch.tensor([1.0, 0.0, 1.0]), layer="features.3"
    )
    assert muted.valid.tolist() == [True, False, True]
    assert torch.equal(muted.heatmap[[0, 2]], alone[[0, 2]]) and not muted.heatmap[1].any()


def test_an_ordinary_explanation_gives_no_warning(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanation = gradcam_fast.explain(ConvNet(), images, layer="features.3")
    assert explanation.valid.all()


def test_an_explainer_shows_its_model_its_layer_and_its_choices():
    explainer = gradcam_fast.Explainer(ConvNet(), layer="features.3", method="layercam", names=["a", "b"])
    assert repr(explainer) == "Explainer(ConvNet, layer features.3, method layercam, normalize minmax, 2 class names)"
    assert "layer found automatically" in repr(gradcam_fast.Explainer(ConvNet()))
    assert "Preprocess(" in repr(gradcam_fast.Explainer(ConvNet(), preprocess=gradcam_fast.Preprocess(16)))
