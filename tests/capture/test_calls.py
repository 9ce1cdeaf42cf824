"""The calls of a layer that are explained, and their maps joined sample by sample."""

import pytest
import torch
from torch import nn

from gradcam_fast._capture.calls import every_picture, explained_calls
from gradcam_fast._capture.request import Request
from gradcam_fast._layout.feature_layout import ImageGeometry
from gradcam_fast._model.inputs import Inputs
from gradcam_fast._model.target_layer import TargetLayer
from gradcam_fast.exceptions import NoSuchCall

MODULE = nn.Conv2d(3, 5, 3)


def calls_of(recorded, call=None, **geometry):
    geometry = ImageGeometry(2, (8, 8), **geometry)
    layer = TargetLayer("conv", MODULE, call)
    request = Request(Inputs((), {}), geometry, None, None, None, "auto")
    return explained_calls([layer], [recorded], request)[0]


def maps(rows=2, side=4):
    return torch.rand(rows, 5, side, side)


def test_one_call_has_one_map_a_sample():
    recorded = maps()
    calls = calls_of([recorded])
    assert (list(calls.indices), calls.maps_per_sample) == ([0], None) and torch.equal(calls.join([recorded]), recorded)


def test_all_calls_are_joined_sample_by_sample():
    recorded = [maps(), maps(), maps()]
    calls = calls_of(recorded, "all")
    assert calls.maps_per_sample == 3
    assert torch.equal(calls.join(recorded), torch.stack(recorded, 1).flatten(0, 1))
    gradients = [torch.rand(2, 7, 5, 4, 4) for _ in recorded]  # of seven targets
    assert torch.equal(calls.join(gradients), torch.stack(gradients, 1).flatten(0, 1))


def test_of_several_pictures_in_one_call_the_last_call_counts():
    calls = calls_of([maps(6), maps(6)], pictures=3)
    assert (list(calls.indices), calls.maps_per_sample) == ([1], 3)


def test_of_one_picture_in_each_call_all_calls_count_unless_one_is_named():
    recorded = [maps(), maps(), maps()]
    assert calls_of(recorded, pictures=3).maps_per_sample == 3
    assert calls_of(recorded[:1], 1, pictures=3).maps_per_sample is None
    assert every_picture(TargetLayer("conv", MODULE)).call == "all"
    assert every_picture(TargetLayer("conv", MODULE, 1)).call == 1


def test_several_inputs_in_one_call_are_told_from_one():
    assert calls_of([maps(4)], inputs=2).of_inputs
    assert not calls_of([maps(2)], inputs=2).of_inputs


@pytest.mark.parametrize(
    ("recorded", "geometry", "message"),
    [
        ([maps(side=4), maps(side=3)], {}, r"maps of shapes \(5, 3, 3\) and \(5, 4, 4\)"),
        ([maps(6), maps(6)], {"pictures": 3}, "each time on all pictures"),
        ([maps(4), maps(4)], {"inputs": 2}, "each time on several inputs"),
    ],
)
def test_calls_that_do_not_go_together_are_refused(recorded, geometry, message):
    with pytest.raises(NoSuchCall, match=f"'conv' ran 2 times in this forward, .*{message}.*; give call=0 to 1"):
        calls_of(recorded, "all", **geometry).join(recorded)
