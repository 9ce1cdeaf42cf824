"""Buffers: an explanation in train mode restores them, and one in eval mode changes them as one prediction does."""

import pytest
import torch
from support.networks import ConvNet, Counting, conv_relu, pooled_head
from support.unchanged import unchanged
from torch import nn

from gradcam_fast import explain


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
