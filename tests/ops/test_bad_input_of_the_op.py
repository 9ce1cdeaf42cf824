"""What the op and the overlay refuse: maps that do not match, unknown choices, what is not a tensor.

Knows nothing of models; `gradcam_fast.cam` and its reference must refuse alike.
"""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from support.refusals import assert_says

import gradcam_fast

IMAGES = torch.zeros(3, 3, 16, 16)


@pytest.mark.parametrize("cam", [gradcam_fast.cam, gradcam_fast.reference.cam])
@pytest.mark.parametrize(
    ("activations", "gradients", "choices", "error", "parts"),
    [
        ((2, 3, 4, 4), (2, 3, 4, 5), {}, ValueError, ("(2, 3, 4, 4)", "(2, 3, 4, 5)", "gradients")),
        ((2, 3, 4, 4), (1, 3, 4, 4), {}, ValueError, ("(2, 3, 4, 4)", "(1, 3, 4, 4)", "gradients")),
        ((2, 3, 4, 4), (2, 7, 5, 4, 4), {}, ValueError, ("(2, 3, 4, 4)", "(2, 7, 5, 4, 4)", "K")),
        ((2, 3), (2, 3), {}, ValueError, ("(2, 3)", "(B,C,h,w)")),
        ((2, 0, 4, 4), (2, 0, 4, 4), {}, ValueError, ("(2, 0, 4, 4)", "channel")),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"size": (0, 8)}, ValueError, ("size", "(0, 8)", "1")),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"method": "scorecam"}, ValueError, ("'scorecam'", "'gradcam'", "'hirescam'")),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"size": {28, 14}}, TypeError, ("size={", "two integers")),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"size": {8: 1, 9: 2}}, TypeError, ("size={8: 1, 9: 2}", "two integers")),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"relu": "no"}, TypeError, ("relu='no'", "a str", "True", "False")),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"normalize": "sum"}, ValueError, ("'sum'", "'minmax'", "'max'", "'none'")),
    ],
)
def test_the_op_refuses_maps_that_do_not_match(activations, gradients, choices, error, parts, cam):
    with pytest.raises(error) as refusal:
        cam(torch.zeros(activations), torch.zeros(gradients), **{"size": 8} | choices)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_op_keeps_no_maps(dtype):
    maps = torch.rand(1, 3, 4, 4).to(dtype)
    gone = weakref.ref(maps)
    gc.disable()
    try:
        gradcam_fast.cam(maps, maps, 8)
        del maps
        assert gone() is None
    finally:
        gc.enable()


def test_what_goes_wrong_in_the_kernel_goes_wrong_once(monkeypatch):
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(gradcam_fast.ops.cam, "_operator", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        gradcam_fast.cam(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), 8)
    assert len(calls) == 1


@pytest.mark.parametrize("cam", [gradcam_fast.cam, gradcam_fast.reference.cam])
@pytest.mark.parametrize(
    ("activations", "gradients", "error", "parts"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, device="meta"), ValueError, ("cpu", "meta", "move")),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4).half(), TypeError, ("float32", "float16", "convert")),
        (torch.zeros(1, 3, 4, 4).int(), torch.zeros(1, 3, 4, 4), TypeError, ("activations", "int32", "float32")),
        ([[1.0]], torch.zeros(1, 3, 4, 4), TypeError, ("activations", "list", "tensor")),
    ],
)
def test_the_op_refuses_what_it_cannot_read(activations, gradients, error, parts, cam):
    with pytest.raises(error) as refusal:
        cam(activations, gradients, 8)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize(
    ("choices", "error", "parts"),
    [
        ({"colormap": "rainbows"}, ValueError, ("'rainbows'", "rainbow", "jet")),
        ({"alpha": 1.5}, ValueError, ("alpha", "1.5", "1")),
        ({"images": IMAGES.numpy()}, TypeError, ("images", "ndarray", "(B,3,H,W)", "torch.from_numpy", "permute")),
        ({"heatmap": [[0.5]]}, TypeError, ("heatmap", "list", "(B,H,W)", "tensor")),
        ({"mean": "x", "std": 1.0}, TypeError, ("mean='x'", "number", "channel")),
        ({"mean": 0.5, "std": [1, 0, 1]}, ValueError, ("std=[1, 0, 1]", "not positive", "divided by")),
        ({"images": IMAGES[:2]}, ValueError, ("(2, 3, 16, 16)", "(3, 16, 16)")),
    ],
)
def test_the_overlay_refuses(choices, error, parts):
    pytest.importorskip("cv2")
    with pytest.raises(error) as refusal:
        gradcam_fast.overlay(**{"images": IMAGES, "heatmap": torch.zeros(3, 16, 16)} | choices)
    assert_says(refusal, error, parts)


def test_no_message_leaks_a_path_of_this_machine():
    with pytest.raises(ValueError) as refusal:
        gradcam_fast.cam(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), 8)
    assert str(Path(gradcam_fast.__file__).parent) not in str(refusal.value)
    assert ".cpp" not in str(refusal.value)
