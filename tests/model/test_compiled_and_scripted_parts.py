"""Parts of a model that run another way than the rest: compiled and recomputed, scripted, checkpointed reentrantly.

Knows nothing of models that are refused whole.
"""

import pytest
import torch
from support.checkpointed import assert_same, explained, recomputed, reentrant, twins
from support.fake_recorder import graphed
from support.networks import ConvNet
from support.torchscript import scripted, traced
from support.unchanged import unchanged
from torch import nn

from gradcam_fast import explain


@pytest.mark.parametrize("topk", [None, 3])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("layer", ["before", "block.0", "behind", None])
def test_a_compiled_part_is_recomputed_as_it_was_computed(layer, warm, in_place, topk, images):
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
def test_a_scripted_part_is_run_and_not_looked_into(form, images):
    model = ConvNet()
    model = nn.Sequential(model.features[:3], model.features[3:], model.head)
    expected = explain(model, images, topk=2, relu=False)
    model[0] = scripted(model[0]) if form == "scripted" else traced(model[0], images)
    for training in (False, True):
        model.train(training)
        with unchanged(model):
            found = explain(model, images, topk=2, relu=False)
        assert found.layer == expected.layer
        if not training:
            torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"layer '0.0' is not in Sequential"):
        explain(model, images, layer="0.0")


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_a_model_with_a_scripted_part_is_not_recorded(form, images):
    model = ConvNet()
    model = nn.Sequential(model.features[:3], model.features[3:], model.head).eval()
    expected = explain(model, images, layer="1")
    model[0] = scripted(model[0]) if form == "scripted" else traced(model[0], images)
    explainer = graphed(model)
    with pytest.warns(RuntimeWarning, match="runs eagerly: module '0' is scripted"):
        for _ in range(3):
            torch.testing.assert_close(explainer(images).heatmap, expected.heatmap, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("topk", [None, 3])
def test_a_reentrant_checkpoint_is_named(topk, images):
    _, model = twins(reentrant)
    for layer, said in (
        ("before", "behind layer 'before' the model runs .*use_reentrant=False"),
        ("block.0", "does not depend on layer 'block.0' .*use_reentrant=True"),
    ):
        with unchanged(model), pytest.raises(RuntimeError, match=said):
            explain(model, images, topk=topk, layer=layer)
