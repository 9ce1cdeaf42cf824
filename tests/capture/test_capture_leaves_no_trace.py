"""`explain` leaves no trace when it succeeds or fails, nor in a training step before or after it.

`unchanged` compares everything observable of the model and of PyTorch's state before and after.
"""

import pytest
import torch
from support.networks import ConvNet
from support.unchanged import unchanged

import gradcam_fast


def explain(model, images, **choices):
    return gradcam_fast.explain(model, images, **{"layer": "features.3"} | choices)


def fail(exception):
    def raising(_):
        raise exception

    return raising


def test_grads_stay_as_they_are(images):
    model = ConvNet()
    model.head[4].weight.grad = torch.randn_like(model.head[4].weight)
    model.features[0].weight.grad = torch.randn_like(model.features[0].weight)
    with unchanged(model):
        explain(model, images, topk=2)
    assert model.features[3].weight.grad is None


@pytest.mark.parametrize("layer", ["features.3", None, ["features.1", "features.3"]])
@pytest.mark.parametrize("training", [True, False])
def test_an_explanation_leaves_no_trace(training, layer, images):
    model = ConvNet(dropout=0.5).train(training)
    with unchanged(model):
        explain(model, images, layer=layer)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_grad_mode_is_restored(mode, images):
    model = ConvNet()
    with mode(), unchanged(model):
        explain(model, images)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("place", ["at_start", "at_head"])
@pytest.mark.parametrize("exception", [RuntimeError("no memory"), KeyboardInterrupt(), SystemExit()])
def test_a_model_that_raises_leaves_no_trace_and_its_exception_is_passed_on(exception, place, mode, images):
    model = ConvNet(dropout=0.5).train()
    setattr(model, place, fail(exception))
    with mode(), unchanged(model), pytest.raises(type(exception)) as caught:
        explain(model, images)
    assert caught.value is exception


def test_a_backward_that_raises_leaves_no_trace(images):
    model = ConvNet().train()
    model.at_head = lambda maps: maps.register_hook(fail(RuntimeError("in the backward")))
    with unchanged(model), pytest.raises(RuntimeError, match="in the backward"):
        explain(model, images)


@pytest.mark.parametrize("target", [5, [0, 1, 9], lambda output: output.sum(), lambda output: 1 / 0])
def test_a_bad_target_leaves_no_trace(target, images):
    model = ConvNet().train()
    with unchanged(model), pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        explain(model, images, target=target)


def test_a_model_is_explained_as_before_after_a_failure(images):
    model = ConvNet()
    expected = explain(model, images).heatmap
    model.at_head = fail(RuntimeError)
    with pytest.raises(RuntimeError):
        explain(model, images)
    model.at_head = lambda _: None
    assert torch.equal(explain(model, images).heatmap, expected)


def test_each_module_keeps_its_own_mode(images):
    model = ConvNet(dropout=0.5)
    model.head[3].train()
    torch.manual_seed(1)
    with torch.no_grad():
        logits = model(images)
    torch.manual_seed(1)
    with unchanged(model):
        assert torch.equal(explain(model, images).logits, logits)


def test_an_explanation_draws_no_random_numbers(images):
    model = ConvNet()
    before = torch.get_rng_state()
    explain(model, images, layer=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_hooks_are_the_same_objects_afterwards(images):
    model = ConvNet()
    model.features[3].register_forward_hook(lambda *_: None)
    model.features[3].register_forward_hook(lambda *_: None, prepend=True)
    model.head.register_forward_pre_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    with unchanged(model):
        explain(model, images)


def test_the_images_are_unchanged(images):
    model, before = ConvNet(), images.clone()
    explain(model, images)
    assert torch.equal(images, before) and images.grad is None


def test_a_training_step_after_an_explanation_has_the_gradients_of_one_without(images):
    def gradients(model):
        return torch.autograd.grad(model(images).logsumexp(1).sum(), list(model.parameters()))

    model = ConvNet()
    expected = gradients(model)
    explain(model, images)
    assert all(torch.equal(one, other) for one, other in zip(gradients(model), expected, strict=True))


def test_a_training_step_in_the_same_autocast_block_reaches_the_trunk(images):
    model = ConvNet()
    with torch.autocast("cpu", torch.bfloat16):
        explain(model, images)
        model(images).float().sum().backward()
    assert model.features[0].weight.grad.abs().max() > 0


def test_an_explanation_between_forward_and_backward_leaves_the_step_unchanged(images):
    model = ConvNet()
    expected = torch.autograd.grad(model(images).sum(), model.features[0].weight)[0]
    loss = model(images).sum()
    explain(model, images)
    assert torch.equal(torch.autograd.grad(loss, model.features[0].weight)[0], expected)
