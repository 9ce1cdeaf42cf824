"""A model that keeps tensors inside, such as biases cached in eval mode, is left without any graph."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from gradcam_fast import explain


class Keeping(nn.Module):
    """Keeps what it adds and what it returns: in a dictionary (once), an attribute and a list."""

    def __init__(self):
        super().__init__()
        self.bias, self.cache, self.last, self.all = nn.Parameter(torch.randn(8, 1, 1)), {}, None, []

    def forward(self, maps):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        self.last = maps + self.cache["bias"]
        self.all.append(self.last)
        return self.last

    def kept(self):
        return [*self.cache.values(), *([] if self.last is None else [self.last]), *self.all]


def network():
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    parts = {"conv": nn.Conv2d(3, 8, 3), "keeping": Keeping(), "relu": nn.ReLU()}
    parts |= {"second": nn.Conv2d(8, 8, 3), "head": head}
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model.eval()


@pytest.mark.parametrize("layer", [None, "conv", "relu", "second"])
def test_nothing_that_is_kept_has_a_graph(layer, images):
    model = network()
    for _ in range(2):
        explain(model, images, layer=layer)
        assert model.keeping.kept() and not any(tensor.requires_grad for tensor in model.keeping.kept())
    copy.deepcopy(model)


def test_a_layer_before_is_explained_after_one_behind(images):
    model = network()
    for layer in ("second", "conv"):
        explain(model, images, layer=layer)
        assert not any(tensor.requires_grad for tensor in model.keeping.kept())


def test_a_prediction_keeps_what_it_would_have_kept(images):
    explained, predicted = network(), network()
    explain(explained, images)
    with torch.no_grad():
        predicted(images)
    for one, other in zip(explained.keeping.kept(), predicted.keeping.kept(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_the_caller_has_kept_stays(images):
    model = network()
    own = model.keeping.bias * 3
    model.keeping.cache["own"], model.own = own, own
    model.keeping.all.append(own)
    explain(model, images)
    assert model.own is own and model.keeping.cache["own"] is own and model.keeping.all[0] is own and own.requires_grad


def test_a_model_that_keeps_tensors_can_be_freed(images):
    model = network()
    explain(model, images)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
