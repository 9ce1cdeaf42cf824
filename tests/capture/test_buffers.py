"""Buffers: an explanation in train mode restores them, and one in eval mode changes them as one prediction does."""

import copy
import pickle
import threading
import time

import pytest
import torch
from support.networks import ConvNet, Counting, conv_relu, pooled_head
from support.unchanged import unchanged
from torch import nn

import gradcam_fast
from gradcam_fast import explain
from gradcam_fast._capture import buffers


def raise_error(_):
    raise RuntimeError


def test_running_statistics_are_unchanged_after_an_explanation_in_train_mode(images):
    model = ConvNet().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    explain(model, images, layer="features.3")
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model(images)
    assert not any(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_buffers_that_the_forward_changes_in_place_or_by_assignment_are_restored(images):
    model = Counting().train()
    with unchanged(model):
        explain(model, images, layer="features.3")
    model.at_head = raise_error
    with unchanged(model), pytest.raises(RuntimeError):
        explain(model, images, layer="features.3")


class CountingForwards(nn.Module):
    """Counts its forwards in a buffer, in place or by assignment."""

    def __init__(self, in_place):
        super().__init__()
        self.trunk, self.head, self.in_place = conv_relu(), pooled_head(8), in_place
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, images):
        if self.in_place:
            self.runs += 1
        else:
            self.runs = self.runs + 1
        return self.head(self.trunk(images))


@pytest.mark.parametrize("in_place", [True, False])
def test_in_eval_mode_an_explanation_changes_buffers_as_one_prediction_does(in_place, images):
    model = CountingForwards(in_place).eval()
    for runs in (1, 2):
        explain(model, images)
        assert model.runs == runs


@pytest.mark.parametrize("layer", ["features.3", None])
def test_training_in_another_thread_keeps_all_its_updates(layer, images):
    model = ConvNet().train()
    alone = copy.deepcopy(model)
    steps, stop = 20, threading.Event()

    def explain():
        while not stop.is_set():
            gradcam_fast.explain(model, images, layer=layer)

    before = int(model.features[1].num_batches_tracked)
    thread = threading.Thread(target=explain)
    thread.start()
    try:
        for _ in range(steps):
            model(images)
            time.sleep(0.005)
    finally:
        stop.set()
        thread.join()
    assert int(model.features[1].num_batches_tracked) == before + steps
    for _ in range(steps):
        alone(images)
    for (name, buffer), expected in zip(model.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_meanwhile_has_dictionaries_and_values_of_the_model(make_copy, images):
    model = ConvNet().train()
    copies = []
    with buffers.preserve_buffers(model):
        thread = threading.Thread(target=lambda: copies.append(make_copy(model)))
        model.features(images)
        thread.start()
        thread.join()
    (copied,) = copies
    assert all(type(module._buffers) is type(nn.Module()._buffers) for module in copied.modules())
    for (name, buffer), expected in zip(copied.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
