"""Wrong arguments of `gradcam_fast.cam` and its reference: both raise the same errors, with messages that help."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from support.refusals import assert_says

import gradcam_fast


@pytest.mark.parametrize("cam", [gradcam_fast.cam, gradcam_fast.reference.cam])
@pytest.mark.parametrize(
    ("activations", "gradients", "options", "error", "parts"),
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
def test_the_op_refuses_maps_that_do_not_match_and_unknown_options(activations, gradients, options, error, parts, cam):
    with pytest.raises(error) as refusal:
        cam(torch.zeros(activations), torch.zeros(gradients), **{"size": 8} | options)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_op_keeps_no_reference_to_its_maps(dtype):
    maps = torch.rand(1, 3, 4, 4).to(dtype)
    maps_ref = weakref.ref(maps)
    gc.disable()
    try:
        gradcam_fast.cam(maps, maps, 8)
        del maps
        assert maps_ref() is None
    finally:
        gc.enable()


def test_an_error_of_the_kernel_is_raised_without_a_second_call(monkeypatch):
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
def test_the_op_refuses_other_dtypes_and_devices(activations, gradients, error, parts, cam):
    with pytest.raises(error) as refusal:
        cam(activations, gradients, 8)
    assert_says(refusal, error, parts)


@pytest.mark.parametrize("cam", [gradcam_fast.cam, gradcam_fast.reference.cam])
@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (torch.Tensor.to_sparse, "a tensor of layout sparse_coo"),
        (torch.Tensor.to_mkldnn, "a tensor of layout _mkldnn"),
        (lambda maps: torch.nested.nested_tensor(list(maps)), "a nested tensor"),
    ],
)
def test_the_op_refuses_tensors_that_are_not_dense(convert, kind, cam):
    dense = torch.rand(1, 3, 4, 4)
    for name, maps in (("activations", (convert(dense), dense)), ("gradients", (dense, convert(dense)))):
        with pytest.raises(TypeError, match=f"{name} is {kind}; give a dense tensor"):
            cam(*maps, 8)


@pytest.mark.parametrize("cam", [gradcam_fast.cam, gradcam_fast.reference.cam])
@pytest.mark.parametrize("size", [(2**64, 1), (1, 2**63), 2**31, (2**40, 2**40), [2**200, 2]])
def test_a_size_that_no_memory_holds_is_refused_in_a_sentence(size, cam):
    with pytest.raises(ValueError, match=r"size=\(.*\) has a side of more than 2147483647 pixels; give a smaller size"):
        cam(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), size)


@pytest.mark.skipif(not gradcam_fast.backend().kernels[0].fused, reason="the kernel of the CPU is not built")
class TestSizesOfTheKernel:
    @pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (2**30, 2**30), (2**24, 2**24)])
    def test_a_lack_of_memory_is_told_with_the_bytes_asked_for(self, size):
        maps = torch.rand(2, 3, 4, 4)
        with pytest.raises(torch.OutOfMemoryError) as refusal:
            gradcam_fast.cam(maps, maps, size)
        count = 2 * size[0] * size[1]
        expected = f"no memory for heatmaps of shape {(2, *size)}, {4 * count:,} bytes on cpu; give a smaller size"
        assert str(refusal.value).startswith(expected)

    @pytest.mark.parametrize("batch", [0, 1])
    @pytest.mark.parametrize("size", [(2**40, 2**40), (2**62, 2**62), (2**63 - 1, 2**63 - 1), (2**63 - 1, 1)])
    def test_element_counts_are_checked_before_any_arithmetic(self, batch, size):
        maps = torch.rand(1, 3, 4, 4)[:batch]
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.ops.gradcam_fast.cam(maps, maps, *size, 0, 0, True)

    def test_maps_that_are_expanded_beyond_all_memory_are_refused(self):
        maps = torch.zeros(1).expand(1, 2**31, 2**30, 1)
        with pytest.raises(RuntimeError, match="out of memory"):
            torch.ops.gradcam_fast.cam(maps, maps, 4, 4, 0, 0, True)


def test_no_message_leaks_a_path_of_this_machine():
    with pytest.raises(ValueError) as refusal:
        gradcam_fast.cam(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), 8)
    assert str(Path(gradcam_fast.__file__).parent) not in str(refusal.value)
    assert ".cpp" not in str(refusal.value)
