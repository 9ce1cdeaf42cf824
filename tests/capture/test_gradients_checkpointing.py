"""Activation checkpointing: a model that recomputes activations has the explanation of one that keeps them.

PyTorch's reentrant kind, which cannot be differentiated in part, is refused.
"""

import pytest
import torch
from support.checkpointed import (
    assert_same,
    explained,
    recomputed,
    recomputed_in_calls,
    recomputed_in_pieces,
    reentrant,
    twins,
)
from support.naive import full_graph, of_class
from support.unchanged import unchanged

from gradcam_fast import cam, explain

LAYERS = ["before", "before.0", "block.0.0", "block.0", "block.1.2", "behind", None, ["before", "block.1", "behind"]]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("run", [recomputed, recomputed_in_pieces, recomputed_in_calls])
def test_a_checkpointed_model_has_the_explanation_of_the_plain_one(run, training, layer, images):
    plain, model = twins(run, training)
    expected = explained(plain, images, layer=layer)
    with unchanged(model):
        assert_same(explained(model, images, layer=layer), expected)


@pytest.mark.parametrize("layer", ["before", "block.0"])
@pytest.mark.parametrize("run", [recomputed, recomputed_in_pieces, recomputed_in_calls])
def test_activations_and_gradients_are_those_of_ordinary_training(run, layer, images):
    plain, model = twins(run, training=True)
    torch.manual_seed(3)
    activations, gradients, logits = full_graph(plain, layer, images, of_class(1))
    choices = {"size": activations.shape[-2:], "method": "hirescam", "normalize": "none"}
    explanation = explained(model, images, target=1, layer=layer, **choices)
    assert torch.equal(explanation.heatmap, cam(activations, gradients, relu=False, **choices)[0])
    assert torch.equal(explanation.logits, logits) and explanation.valid.all()


@pytest.mark.parametrize("run", [recomputed, recomputed_in_pieces, recomputed_in_calls])
def test_several_targets_of_a_checkpointed_model_are_explained(run, images):
    plain, model = twins(run, training=True)
    with unchanged(model):
        assert_same(explained(model, images, topk=3, layer="before"), explained(plain, images, topk=3, layer="before"))


@pytest.mark.parametrize("layer", ["before", "block.0", None])
def test_frozen_weights_and_a_checkpoint_up_to_the_head_change_nothing(layer, images):
    plain, model = (twin.requires_grad_(False) for twin in twins(recomputed, behind=False))
    with unchanged(model):
        explanation, expected = explained(model, images, layer=layer), explained(plain, images, layer=layer)
    assert_same(explanation, expected)
    assert layer or explanation.layer == "block"


@pytest.mark.parametrize("layer", ["before", "block.0"])
def test_the_block_is_recomputed_in_the_precision_of_the_forward(layer, images):
    plain, model = twins(recomputed)
    with torch.autocast("cpu", torch.bfloat16):
        explanation, expected = explained(model, images, layer=layer), explained(plain, images, layer=layer)
    assert expected.logits.dtype == torch.bfloat16
    assert_same(explanation, expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("topk", [None, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", ["behind", None])
def test_a_reentrant_checkpoint_before_the_layer_changes_nothing(layer, training, topk, images):
    plain, model = twins(reentrant, training)
    with unchanged(model):
        explanation = explained(model, images, topk=topk, layer=layer)
    assert_same(explanation, explained(plain, images, topk=topk, layer="behind"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("before", "use_reentrant=False"),
        (["before", "behind"], "use_reentrant=False"),
        ("block.0", r"does not depend on layer 'block\.0'"),
        ("block", "does not depend on layer 'block'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("topk", [None, 3])
@pytest.mark.parametrize("training", [True, False])
def test_a_reentrant_checkpoint_at_or_behind_the_layer_is_refused(training, topk, layer, message, images):
    _, model = twins(reentrant, training)
    with unchanged(model), pytest.raises(RuntimeError, match=message):
        explain(model, images, topk=topk, layer=layer)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("topk", [None, 3])
def test_the_message_names_the_layer_and_the_reentrant_checkpoint(topk, images):
    _, model = twins(reentrant)
    for layer, message in (
        ("before", "behind layer 'before' the model runs .*use_reentrant=False"),
        ("block.0", "does not depend on layer 'block.0' .*use_reentrant=True"),
    ):
        with unchanged(model), pytest.raises(RuntimeError, match=message):
            explain(model, images, topk=topk, layer=layer)
