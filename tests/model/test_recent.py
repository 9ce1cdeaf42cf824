"""What is remembered of a model is bounded, and the entries used last stay."""

import pytest
import torch
from support.networks import ConvNet

import gradcam_fast
from gradcam_fast._layer_search import memory
from gradcam_fast._model import inputs
from gradcam_fast._model.recent import Recent


def test_the_entries_used_last_stay():
    recent = Recent(3)
    for number in range(3):
        recent[number] = number
    assert recent.get(0) == 0 and recent.values() == [1, 2, 0]
    recent[3] = 3
    assert [key in recent for key in range(4)] == [True, False, True, True]
    assert recent.setdefault(0, "other") == 0 and recent.setdefault(9, "new") == "new"
    recent.forget(9)
    recent.forget("unknown")
    assert recent.get(9) is None and len(recent) == 2


@pytest.mark.parametrize("channels", [True, False])
def test_a_key_for_each_size_does_not_grow_without_bound(channels):
    model = ConvNet() if channels else Gray()
    explainer = gradcam_fast.Explainer(model, size=4)
    for side in range(100):
        shape = (1, 3, 16, 16 + side) if channels else (1, 16, 16 + side)
        assert explainer(torch.rand(shape)).heatmap.shape == (1, 4, 4)
    sizes = [len(known.get(model, ())) for known in (memory._MEMORY, memory._PATCH_TOKENS, inputs._TAKEN)]
    assert max(sizes) == 64


def test_a_key_for_each_value_that_functions_hold_does_not_grow(images):
    model = ConvNet()
    for number in range(100):
        gradcam_fast.explain(model, images[:1], output=lambda logits, number=number: logits + number)
        gradcam_fast.explain(model, images[:1], target=lambda logits, number=number: logits[:, number % 5])
    assert len(memory._MEMORY[model]) <= 4


class Gray(ConvNet):
    """Takes images without channels."""

    def forward(self, images):
        return super().forward(images.unsqueeze(1).expand(-1, 3, -1, -1))
