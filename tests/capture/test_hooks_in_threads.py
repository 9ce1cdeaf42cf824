"""Explanations in several threads disturb neither each other nor inference and training on the same model.

Threads are halted at chosen places of the forward, so that no test depends on timing.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.networks import ConvNet
from support.unchanged import unchanged

import gradcam_fast

PATIENCE = 30  # seconds that a halted thread waits at most


class Halt:
    """Called in every forward; halts only the thread that armed it, until released."""

    def __init__(self):
        self.thread, self.reached, self.released = None, threading.Event(), threading.Event()

    def __call__(self, _):
        if threading.get_ident() == self.thread:
            self.reached.set()
            assert self.released.wait(PATIENCE)


def halted(model, place, work):
    """Start `work` in a thread and wait until it halts at `place` of the forward; return its future and the release."""
    halt = Halt()
    setattr(model, place, halt)

    def armed():
        halt.thread = threading.get_ident()
        return work()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(armed)
    pool.shutdown(wait=False)
    assert halt.reached.wait(PATIENCE)
    return future, halt.released.set


def explain(model, images, **choices):
    return gradcam_fast.explain(model, images, layer="features.3", **choices)


def test_eight_threads_get_the_explanations_of_one_thread():
    model = ConvNet()
    batches = [torch.randn(1 + index % 3, 3, 16 + index, 16) for index in range(8)]
    with unchanged(model):
        with ThreadPoolExecutor(1) as one:
            expected = [*one.map(lambda batch: explain(model, batch), batches)]
        start = threading.Barrier(8)

        def together(batch):
            start.wait(PATIENCE)
            return [explain(model, batch) for _ in range(10)]

        with ThreadPoolExecutor(8) as eight:
            explanations_of_threads = [*eight.map(together, batches)]
    for explanations, single in zip(explanations_of_threads, expected, strict=True):
        for explanation in explanations:
            assert torch.equal(explanation.heatmap, single.heatmap)
            assert torch.equal(explanation.logits, single.logits)


@pytest.mark.parametrize("place", ["at_start", "at_head"])
def test_an_inference_during_an_explanation_is_undisturbed(place, images):
    model = ConvNet()
    expected = explain(model, images)
    other_images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits = model(other_images)
    future, release = halted(model, place, lambda: explain(model, images))
    with torch.no_grad():
        output = model(other_images)
    release()
    assert torch.equal(output, logits) and not output.requires_grad
    explanation = future.result(PATIENCE)
    assert torch.equal(explanation.heatmap, expected.heatmap) and torch.equal(explanation.logits, expected.logits)


@pytest.mark.parametrize("place", ["at_start", "at_head"])
def test_a_training_step_during_an_explanation_reaches_the_trunk(place, images):
    model = ConvNet()
    expected = torch.autograd.grad(model(images).sum(), model.features[0].weight)[0]
    future, release = halted(model, place, lambda: explain(model, images))
    gradient = torch.autograd.grad(model(images).sum(), model.features[0].weight)[0]
    release()
    assert torch.equal(gradient, expected)
    assert future.result(PATIENCE).valid.all()


@pytest.mark.parametrize("place", ["at_start", "at_head"])
def test_an_explanation_during_a_training_forward_changes_no_gradient(place, images):
    model = ConvNet()
    expected = torch.autograd.grad(model(images).sum(), model.features[0].weight)[0]
    heatmap = explain(model, images).heatmap
    future, release = halted(
        model, place, lambda: torch.autograd.grad(model(images).sum(), model.features[0].weight)[0]
    )
    assert torch.equal(explain(model, images).heatmap, heatmap)
    release()
    assert torch.equal(future.result(PATIENCE), expected)


@pytest.mark.parametrize("place", ["at_start", "at_head"])
def test_an_explanation_during_another_threads_explanation_changes_neither(place, images):
    model = ConvNet()
    other_images = torch.randn(2, 3, 24, 16)
    first, second = explain(model, images), explain(model, other_images, topk=2)
    with unchanged(model):
        future, release = halted(model, place, lambda: explain(model, images))
        explanation = explain(model, other_images, topk=2)
        release()
        outer = future.result(PATIENCE)
    assert torch.equal(explanation.heatmap, second.heatmap) and torch.equal(outer.heatmap, first.heatmap)


def test_an_explanation_that_fails_in_one_thread_leaves_the_other_unchanged(images):
    model = ConvNet()
    expected = explain(model, images).heatmap
    future, release = halted(model, "at_head", lambda: explain(model, images))
    with pytest.raises(ValueError):
        explain(model, images, target=99)
    release()
    assert torch.equal(future.result(PATIENCE).heatmap, expected)


@pytest.mark.parametrize("place", ["at_start", "at_head"])
def test_train_mode_statistics_survive_two_explanations_at_once(place, images):
    model = ConvNet().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    future, release = halted(model, place, lambda: explain(model, images))
    pool = ThreadPoolExecutor(1)
    second = pool.submit(explain, model, images)  # may have to wait for the first: that is allowed
    release()
    second.result(PATIENCE), future.result(PATIENCE)
    pool.shutdown()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class Pooled(ConvNet):
    """Behind the layer is a global average pooling, whose gradient is one number per channel."""

    def __init__(self):
        super().__init__()
        self.features[3] = torch.nn.Conv2d(8, 12, 3, padding=1)
        self.head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(12, 5))
        self.eval()


def feature_maps(model, images, layer):
    return gradcam_fast.features.feature_maps(model, images, layer=layer)


@pytest.mark.parametrize("place", ["at_start", "at_head"])
@pytest.mark.parametrize("layers", [("features", "features"), (None, "features"), ("features", None)])
def test_the_gradient_keeps_its_shortcut_whoever_else_explains(place, layers, images):
    model = Pooled()
    alone = feature_maps(model, images, layers[1])
    assert alone.gradients.stride()[2:] == (0, 0)
    gradcam_fast._layer_search.memory._MEMORY.clear()
    future, release = halted(model, place, lambda: feature_maps(model, images, layers[0]))
    together = feature_maps(model, images, layers[1])
    release()
    for maps in (together, future.result(PATIENCE)):
        assert maps.gradients.stride()[2:] == (0, 0)
        assert torch.equal(maps.gradients, alone.gradients) and torch.equal(maps.activations, alone.activations)


@pytest.mark.parametrize("layer", ["features", None])
def test_listing_layers_in_another_thread_does_not_take_the_shortcut(layer, images):
    model = Pooled()
    alone = feature_maps(model, images, layer)
    future, release = halted(model, "at_head", lambda: gradcam_fast.layers.list_layers(model, images))
    assert feature_maps(model, images, layer).gradients.stride() == alone.gradients.stride()
    release()
    assert future.result(PATIENCE)
