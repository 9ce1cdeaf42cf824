"""Which picture each row of a layer's maps is of, as the model is asked: orders, mixtures, and what is remembered."""

import pytest
import torch
from support.networks import ConvNet
from torch import nn

import gradcam_fast
from gradcam_fast._capture.capture import capture
from gradcam_fast._layer_search.pictures import PictureRows, _sorted_rows, picture_rows
from gradcam_fast.exceptions import PicturesMixed


class Folded(nn.Module):
    """Runs a network on all pictures at once, in the order that `order` gives of their numbers (B,T)."""

    def __init__(self, order):
        super().__init__()
        self.order, self.model = order, ConvNet()
        self.eval()

    def forward(self, clips):
        order = self.order(torch.arange(clips.shape[0] * clips.shape[1]).reshape(clips.shape[:2])).flatten()
        logits = self.model(clips.flatten(0, 1)[order])
        return logits[order.argsort()].unflatten(0, clips.shape[:2]).mean(1)


ORDERS = {
    "sample by sample": (lambda numbers: numbers, None),
    "picture by picture": (torch.t, (0, 2, 4, 1, 3, 5)),
    "last to first": (lambda numbers: numbers.flip(1), (2, 1, 0, 5, 4, 3)),
    "any": (lambda numbers: numbers.flatten()[[4, 1, 3, 0, 5, 2]], (3, 1, 5, 2, 0, 4)),
}


def rows_of(model, clips):
    explainer = gradcam_fast.Explainer(model, layer="model.features")
    request = explainer._request(clips, 1)
    captured = capture(explainer.model, request, explainer._layers)
    return picture_rows(explainer.model, request, captured.calls[0])


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_the_pictures_is_found(name):
    order, rows = ORDERS[name]
    assert rows_of(Folded(order), torch.rand(2, 3, 3, 16, 16)) == PictureRows((0, 1, 2), rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_other_dtypes_too(dtype):
    order, rows = ORDERS["picture by picture"]
    assert rows_of(Folded(order).to(dtype), torch.rand(2, 3, 3, 16, 16, dtype=dtype)).order == rows


def test_a_picture_that_reaches_no_map_is_where_the_others_leave_room():
    clips = torch.rand(2, 3, 3, 16, 16)
    model = Folded(ORDERS["sample by sample"][0])
    clips[1, 0] = -1e6  # its maps are zero behind every ReLU
    nn.init.constant_(model.model.features[0].weight, 1.0)
    assert rows_of(model, clips) == PictureRows((0, 1, 2), None)


def test_an_order_is_remembered_for_batches_of_all_sizes_only_if_samples_follow_each_other():
    runs = []
    for name, again in (("sample by sample", 0), ("picture by picture", 1)):
        model = Folded(ORDERS[name][0])
        rows_of(model, torch.rand(2, 3, 3, 16, 16))
        explainer = gradcam_fast.Explainer(model, layer="model.features")
        clips = torch.rand(5, 3, 3, 16, 16)
        explainer._request(clips, 1)
        handle = model.register_forward_hook(lambda *_: runs.append(1))
        runs.clear()
        explainer(clips, 1)
        # Of two samples, then of all, as their order is not that of the samples.
        assert len(runs) == 1 + 2 * again
        runs.clear()
        explainer(clips, 1)
        assert len(runs) == 1
        handle.remove()


def sorted_rows(place, rest=0.0):
    place = torch.tensor(place, dtype=torch.double)
    return _sorted_rows("layer", place, torch.full_like(place, rest), torch.ones_like(place, dtype=torch.bool), 3)


def test_rows_that_mix_pictures_keep_the_order_they_nearly_have():
    assert sorted_rows([[0.4, 1.1, 1.8], [3.2, 4.0, 4.9]], rest=0.3) == PictureRows((0, 1, 2), None)
    for place in ([[1.8, 1.1, 0.4], [4.9, 4.0, 3.2]], [[0.3, 2.0, 3.9], [1.1, 3.0, 4.8]]):
        with pytest.raises(PicturesMixed, match="mixes the pictures of a sample"):
            sorted_rows(place, rest=0.3)


def test_two_pictures_in_one_row_are_refused():
    with pytest.raises(PicturesMixed, match="3 maps a sample"):
        sorted_rows([[0, 1, 1], [3, 4, 5]])
