"""Where the kernel of the CPU has no memory to work in, it says so in a sentence, on any number of threads."""

import re

import pytest
import torch

import gradcam_fast

pytestmark = pytest.mark.skipif(not gradcam_fast.backend().kernels[0].fused, reason="the kernel is not built")

# Expanded, so that the maps themselves take no memory.
MAPS = torch.ones(1).expand(1, 3, 2**27, 2**27)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_maps_for_whose_sums_there_is_no_memory_are_refused(method, threads):
    said = "no memory to work in for gradients of shape (1, 3, 134217728, 134217728) on cpu; give fewer images or"
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(said)):
        gradcam_fast.cam(MAPS, MAPS, 4, method=method)
    maps = torch.rand(1, 2, 3, 3)
    assert torch.isfinite(gradcam_fast.cam(maps, maps, 4, method=method)[0]).all()


def test_a_side_that_the_tables_cannot_hold_is_refused():
    maps = torch.ones(1).expand(1, 3, 2**40, 1)
    with pytest.raises(RuntimeError, match="out of memory: a side of more than 2147483647 positions"):
        torch.ops.gradcam_fast.cam(maps, maps, 4, 4, 0, 0, True)
