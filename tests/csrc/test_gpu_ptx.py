"""The PTX of the CUDA kernel, run by tools/ptx_interpreter, has the bits of the same code compiled for the host.

The interpreter also refuses accesses out of bounds, races, and diverged barriers and shuffles. Counts of bytes and
instructions stand for speed. What ptxas makes of the PTX is not tested. Needs an nvcc for the installed torch.
"""

import re
import subprocess
from functools import cache, partial

import pytest
import torch
from ptx_interpreter import Fault, Module, Profile
from support import device_code
from support.op_cases import LAYOUTS, inputs
from support.shared import folder_filled_once
from support.sources import CSRC, cuda_build, cuda_flags
from test_gpu_on_host import BLOCKS, DTYPES

from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

# Options for the library that the PTX is linked into.
NOT_FOR_PTX = ("-cudart=static", "--threads=0", "--no-device-link")
# Clusters and asynchronous copies; asynchronous copies only; neither.
HOPPER, AMPERE, TURING = "compute_90", "compute_80", "compute_75"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """compiled(architecture): the PTX of all kernels for it."""
    torch_here, nvcc = cuda_build()
    flags = cuda_flags(*NOT_FOR_PTX)
    source = CSRC / "cuda" / "cam.cu"

    def write(architecture, folder):
        command = [nvcc, "-ptx", f"-arch={architecture}", *flags, f"-I{CSRC}", f"-isystem={torch_here.include}", source]
        subprocess.run([*command, "-o", folder / "kernels.ptx"], check=True)

    @cache
    def compile_for(architecture):
        folder = folder_filled_once(tmp_path_factory, f"ptx_{architecture}", partial(write, architecture))
        return Module((folder / "kernels.ptx").read_text())

    return compile_for


@pytest.fixture
def agree(gpu_on_host, compiled):
    """agree(activations, gradients, size, ...): the PTX has the bits of one block on the host."""

    def check(activations, gradients, size, *, blocks=1, order="together", architecture=HOPPER, **choice):
        expected = device_code.on_host(gpu_on_host)(activations, gradients, size, **choice)
        on_ptx = device_code.on_ptx(gpu_on_host, compiled(architecture))
        interpreted = on_ptx(activations, gradients, size, blocks=blocks, order=order, **choice)
        for computed, wanted in zip(interpreted, expected, strict=True):
            # NaNs may have any bits.
            assert torch.equal(computed.isnan(), wanted.isnan())
            assert torch.equal(computed.nan_to_num(0.0).view(torch.int32), wanted.nan_to_num(0.0).view(torch.int32))

    return check


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_has_the_bits_of_the_host(agree, method, dtype, blocks):
    agree(*inputs((1, 0, 70, 7, 7), dtype), (12, 16), method=method, blocks=blocks)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_every_normalisation_has_the_bits_of_the_host(agree, normalize, relu):
    agree(*inputs((1, 2, 20, 5, 9)), (7, 10), normalize=normalize, relu=relu, method="layercam")


@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "elementwise"])
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "contiguous"])
def test_every_memory_layout_has_the_bits_of_the_host(agree, layout, blocks, method):
    activations, gradients = (LAYOUTS[layout](maps) for maps in inputs((1, 2, 41, 6, 5), torch.float16))
    agree(activations, gradients, (8, 9), method=method, blocks=blocks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "off by one element"])
def test_expanded_gradients_have_the_bits_of_the_host(agree, layout, dtype):
    activations, pooled = inputs((1, 3, 30, 6, 5), dtype)
    agree(LAYOUTS[layout](activations), pooled[..., :1, :1].expand(1, 3, 30, 6, 5), (8, 12))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 0, 9, 1, 1), (4, 6)),
        ((2, 0, 33, 14, 14), (15, 17)),
        ((1, 2, 5, 1, 40), (3, 100)),
        ((1, 0, 3, 40, 1), (8, 8)),
        ((1, 0, 300, 2, 3), (5, 300)),
        ((1, 0, 4, 23, 30), (12, 7)),
        ((1, 0, 600, 5, 9), (7, 5)),
        ((1, 0, 2100, 2, 1), (3, 4)),
        ((1, 0, 8, 7, 6), (3, 1030)),
    ],
)
@pytest.mark.parametrize("blocks", [1, 8])
def test_every_shape_has_the_bits_of_the_host(agree, shape, size, blocks):
    agree(*inputs(shape), size, blocks=blocks)
    agree(*inputs(shape), size, blocks=blocks, method="gradcam++")


# (shape, channels per stage): 8, 5, 2 and no groups of threads; 1, 4 and 16 lanes per channel; empty slabs; several
# slabs per block.
STAGED_CASES = [
    ((1, 0, 72, 5, 5), 32),
    ((1, 2, 152, 7, 7), 16),
    ((1, 0, 104, 9, 10), 8),
    ((2, 0, 72, 13, 20), 8),
    ((1, 0, 8, 3, 4), 32),
    ((1, 0, 72, 4, 12), 16),
    ((1, 0, 2120, 2, 1), 64),
]


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "stage_channels"), STAGED_CASES)
def test_staging_has_the_bits_of_the_host(agree, shape, stage_channels, method, dtype, blocks):
    agree(*inputs(shape, dtype), (9, 8), method=method, blocks=blocks, stage_channels=stage_channels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_staging_without_clusters_has_the_bits_of_the_host(agree, method, dtype):
    agree(*inputs((1, 2, 152, 7, 7), dtype), (9, 8), method=method, stage_channels=16, architecture=AMPERE)


@pytest.mark.parametrize("order", ["forwards", "backwards"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_gradient_per_channel_is_staged(agree, dtype, order):
    activations, pooled = inputs((1, 3, 152, 6, 5), dtype)
    per_channel = pooled[..., :1, :1].contiguous()
    agree(activations, per_channel.expand(1, 3, 152, 6, 5), (8, 12), blocks=2, stage_channels=16, order=order)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_no_bit_depends_on_which_warp_runs_first(agree, order, layout):
    maps = [LAYOUTS[layout](tensor) for tensor in inputs((1, 0, 40, 5, 5))]
    for method in ("gradcam", "xgradcam"):
        agree(*maps, (6, 8), blocks=2, order=order, method=method)


@pytest.mark.parametrize("method", ["gradcam", "elementwise"])
def test_a_map_too_large_for_shared_memory_has_the_bits_of_the_host(agree, method):
    agree(*inputs((1, 2, 20, 13, 17)), (20, 34), spill=True, method=method)


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_image_is_found_broken(agree, broken, blocks):
    activations, gradients = inputs((2, 0, 20, 5, 6))
    activations[0, 3, 2, 1] = broken
    agree(activations, gradients, (10, 12), blocks=blocks)


@pytest.mark.parametrize("exponent", [-110, 90])
def test_numbers_near_the_ends_of_their_range_have_the_bits_of_the_host(agree, exponent):
    activations, gradients = inputs((1, 0, 20, 7, 7))
    agree(activations, gradients * 2.0**exponent, (9, 8), blocks=2)


@pytest.mark.parametrize(
    ("barrier", "stage_channels"),
    [
        ("bar.sync", 0),
        ("bar.sync", 16),
        ("bar.warp.sync", 0),
        ("barrier.cluster.arrive", 0),
        ("barrier.cluster.wait", 0),
        ("cp.async.wait_group", 16),
    ],
)
def test_without_a_barrier_it_is_refused(gpu_on_host, compiled, barrier, stage_channels):
    text, removed = re.subn(rf"\b{re.escape(barrier)}\b[^;]*;", "", compiled(HOPPER).text)
    assert removed
    with pytest.raises(Fault):
        device_code.on_ptx(gpu_on_host, Module(text))(
            *inputs((1, 0, 152, 5, 8)), (8, 8), blocks=4, stage_channels=stage_channels
        )


# Limits of warp-level PTX instructions per image. At four fifths of 4.2 TB/s the inputs and heatmaps of 256 images of
# 2048x7x7 take 76 us. In this time 132 multiprocessors at 1.75 GHz, with 2.5 instructions a cycle, issue 170,000 per
# image.
@pytest.mark.parametrize(
    ("shape", "blocks", "stage_channels", "most"),
    [
        ((1, 0, 2048, 7, 7), 4, 64, 125_000),
        ((1, 0, 2048, 7, 7), 8, 128, 130_000),
        ((1, 0, 512, 14, 14), 4, 16, 139_000),
    ],
)
def test_reads_and_writes_each_byte_once_and_takes_no_more_instructions_than_it_did(
    gpu_on_host, compiled, shape, blocks, stage_channels, most
):
    profile = Profile()
    maps = inputs(shape)
    device_code.on_ptx(gpu_on_host, compiled(HOPPER))(
        *maps, (224, 224), blocks=blocks, stage_channels=stage_channels, profile=profile
    )
    assert profile.requested["cp.async"] == sum(4 * tensor.numel() for tensor in maps)
    assert profile.requested["ld global"] == 0
    # Whole sectors of 32 bytes, and two for the extremes.
    assert profile.sectors["cp.async"] * 32 == profile.requested["cp.async"]
    assert profile.sectors["st global"] == 224 * 224 * 4 // 32 + 2
    assert profile.passes["cp.async to shared"] == profile.fewest_passes["cp.async to shared"]
    assert profile.passes["ld shared"] <= 1.3 * profile.fewest_passes["ld shared"]
    assert profile.instructions.total() <= most


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "off by one element"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_without_clusters_it_has_the_bits_of_the_host(agree, method, dtype, layout):
    maps = (LAYOUTS[layout](tensor) for tensor in inputs((1, 0, 41, 7, 6), dtype))
    agree(*maps, (9, 8), method=method, architecture=TURING)


@pytest.mark.parametrize("method", METHODS)
def test_without_clusters_a_large_map_has_the_bits_of_the_host(agree, method):
    agree(*inputs((1, 0, 5, 20, 17)), (9, 11), spill=True, method=method, architecture=TURING)
