"""An Explanation is frozen, holds no graph and prints its shapes."""

import pytest
from support.networks import ConvNet

import gradcam_fast


def test_an_explanation_holds_no_graph(images):
    explanation = gradcam_fast.explain(ConvNet(), images, layer="features.3")
    for tensor in (
        explanation.heatmap,
        explanation.logits,
        explanation.score,
        explanation.raw_min,
        explanation.raw_max,
    ):
        assert tensor.is_leaf and not tensor.requires_grad


def test_an_explanation_is_frozen(images):
    explanation = gradcam_fast.explain(ConvNet(), images, layer="features.3")
    with pytest.raises(AttributeError):
        explanation.heatmap = None


def test_an_explanation_prints_its_shapes(images):
    explanation = gradcam_fast.explain(ConvNet(), images, topk=2, layer="features.3")
    assert repr(explanation) == ("Explanation(heatmap (3, 2, 16, 16) at features.3, target (3, 2) int64, 6 of 6 valid)")
