"""The CUDA kernel's device code, run thread by thread on the host, against the reference.

Shows a wrong index, a missing barrier, or a bit that depends on the number of blocks. A GPU's instructions, memory and
speed are not tested.
"""

from functools import partial

import pytest
import torch
from support import device_code
from support.op_cases import LAYOUTS, assert_agrees, assert_same_bits, inputs
from support.tolerances import SAME_INPUTS

from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BLOCKS = [1, 2, 4, 8]
CLOSE = SAME_INPUTS[torch.float32]


@pytest.fixture
def cam(gpu_on_host):
    return device_code.on_host(gpu_on_host)


SHAPES = [
    ((2, 0, 70, 7, 7), (28, 28)),
    ((1, 3, 20, 5, 9), (31, 50)),
    ((1, 0, 9, 1, 1), (4, 6)),
    ((1, 0, 33, 14, 14), (15, 17)),
    ((1, 0, 70, 12, 12), (15, 17)),
    ((1, 2, 5, 1, 40), (3, 100)),
    ((1, 0, 3, 40, 1), (8, 8)),
    ((1, 0, 300, 2, 3), (5, 300)),
    ((1, 0, 4, 23, 30), (12, 7)),
    # Slabs of 75 channels, which a warp takes eight at a time; the last time there are fewer.
    ((1, 0, 600, 5, 9), (7, 5)),
]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_agrees_with_the_reference(cam, shape, size, method, normalize, relu):
    assert_agrees(*inputs(shape), size, CLOSE, cam, method=method, normalize=normalize, relu=relu)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_the_map(cam, layout, dtype, method):
    activations, gradients = (LAYOUTS[layout](t) for t in inputs((2, 2, 70, 6, 5), dtype))
    assert_agrees(activations, gradients, (24, 20), SAME_INPUTS[dtype], cam, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_expanded_gradients_are_read_as_they_are(cam, method):
    activations, pooled = torch.randn(2, 70, 6, 5), torch.randn(2, 3, 70, 1, 1)
    assert_agrees(activations, pooled.expand(2, 3, 70, 6, 5), (24, 20), CLOSE, cam, method=method)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "tokens"])
@pytest.mark.parametrize("shape", [(1, 2, 70, 7, 7), (1, 0, 9, 13, 21), (1, 0, 2100, 2, 1)])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "xgradcam", "layercam"])
def test_no_bit_depends_on_the_number_of_blocks_nor_on_which_thread_runs_first(cam, shape, method, layout):
    activations, gradients = (LAYOUTS[layout](t) for t in inputs(shape))
    expected = cam(activations, gradients, (24, 36), method=method)
    for blocks, backwards in ((1, True), (2, False), (4, True), (8, False), (8, True)):
        found = cam(activations, gradients, (24, 36), method=method, blocks=blocks, backwards=backwards)
        assert_same_bits(found, expected)


# (shape, channels per stage): last stages of a slab that are not full, or unevenly split among the groups of threads;
# 8, 5, 2, 1 and no groups; 1, 4 and 16 lanes per channel; empty slabs; several slabs per block.
STAGED_CASES = [
    ((2, 0, 304, 7, 7), 16),
    ((1, 3, 72, 5, 5), 32),
    ((1, 0, 336, 9, 10), 16),
    ((2, 2, 152, 14, 14), 8),
    ((1, 0, 104, 13, 20), 8),
    ((1, 0, 8, 3, 3), 32),
    ((1, 0, 264, 4, 12), 24),
    ((1, 0, 40, 1, 2), 32),
    ((1, 0, 2120, 2, 1), 64),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "stage_channels"), STAGED_CASES)
def test_staging_channels_in_shared_memory_changes_no_bit(cam, shape, stage_channels, method, dtype):
    activations, gradients = inputs(shape, dtype)
    expected = cam(activations, gradients, (24, 20), method=method)
    for blocks, backwards in ((1, False), (1, True), (4, True), (8, False)):
        found = cam(
            activations,
            gradients,
            (24, 20),
            method=method,
            blocks=blocks,
            backwards=backwards,
            stage_channels=stage_channels,
        )
        assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "elementwise", "layercam"])
def test_one_gradient_per_channel_is_staged_as_one_number(cam, method, dtype):
    activations = torch.randn(2, 304, 7, 7).to(dtype)
    gradients = torch.randn(2, 3, 304, 1, 1).to(dtype).expand(2, 3, 304, 7, 7)
    expected = cam(activations, gradients, (24, 20), method=method)
    assert_agrees(activations, gradients, (24, 20), SAME_INPUTS[dtype], cam, method=method)
    for blocks in (1, 4):
        assert_same_bits(
            cam(activations, gradients, (24, 20), method=method, blocks=blocks, stage_channels=16), expected
        )


# (multiprocessors, bytes of shared memory per block, and per multiprocessor)
H200, A100, A10, T4 = (132, 232448, 233472), (108, 166912, 167936), (72, 101376, 102400), (40, 65536, 65536)
MAPS = [
    (1, 1, 2048, 7, 7), (8, 1, 1280, 7, 7), (64, 1, 512, 14, 14), (256, 1, 2048, 7, 7), (1024, 3, 960, 7, 7),
    (1, 1, 512, 14, 14), (16, 1, 768, 16, 16), (4, 1, 256, 28, 28), (4, 1, 256, 56, 56),
    (300, 1, 1, 300, 280), (2, 5, 3, 1, 1), (9, 1, 72, 4, 4), (400, 1, 512, 28, 28),
    (1, 1, 4, 4096, 4096), (1, 1, 4, 5600, 5600),
]  # fmt: skip


def dense(channels, rows, columns):
    return channels * rows * columns, channels * rows * columns, rows * columns, columns, 1


@pytest.mark.parametrize("bytes_per_number", [2, 4])
@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("device", [H200, A100, A10, T4])
def test_a_launch_plan_fits_the_device(gpu_on_host, device, maps, bytes_per_number):
    multiprocessors, per_block, per_multiprocessor = device
    images, targets, channels, rows, columns = maps
    clusters, copies = device == H200, device != T4
    strides = dense(channels, rows, columns)
    blocks, stage_channels, shared = gpu_on_host.plan(
        0, bytes_per_number, 0, strides, 0, strides, (*maps, 224, 224), device, clusters, copies
    )
    assert blocks in (BLOCKS if clusters else [1])
    # Eight channels are a multiple of sixteen bytes in every stored type.
    assert stage_channels <= 256 and stage_channels % 8 == 0
    # A map that does not fit in shared memory is spilled to global memory.
    assert 0 < shared <= per_block or (stage_channels == 0 and 4 * rows * columns > per_block - 4096)
    if stage_channels:
        resident = min(2, -(-images * targets * blocks // multiprocessors))
        assert resident * (shared + 1024) <= per_multiprocessor
        # While half of its stages are in use a multiprocessor has enough loads in flight; or stages hold whole slabs.
        slab = 8 * -(-channels // 8 // (8 * -(-channels // 2048)))
        bytes_per_channel = 2 * rows * columns * bytes_per_number
        assert resident * 2 * stage_channels * bytes_per_channel >= min(12288 * resident, 2 * slab * bytes_per_channel)


def test_common_shapes_are_staged_in_shared_memory_and_others_are_not(gpu_on_host):
    def stage_channels(a, g, maps, address=0, bytes_per_number=4, copies=True, method="gradcam"):
        return gpu_on_host.plan(
            METHODS.index(method), bytes_per_number, address, a, 0, g, (*maps, 224, 224), H200, True, copies
        )[1]

    for channels, side in ((2048, 7), (1280, 7), (512, 14), (768, 16)):
        maps = (256, 1, channels, side, side)
        planes, one_per_channel = dense(channels, side, side), (channels, channels, 1, 0, 0)
        channels_last = (channels * side * side, 0, 1, side * channels, channels)
        assert stage_channels(planes, planes, maps) > 0
        assert stage_channels(planes, one_per_channel, maps) > 0
        assert stage_channels(planes, one_per_channel, maps, method="xgradcam") == 0
        assert stage_channels(planes, planes, maps, bytes_per_number=2) > 0
        assert stage_channels(channels_last, channels_last, maps) == 0
        assert stage_channels(planes, (*planes[:4], 2), maps) == 0
        assert stage_channels(planes, planes, maps, address=4) == 0
        assert stage_channels(planes, planes, maps, copies=False) == 0
    # Images that do not begin at a multiple of sixteen bytes; allowed if there is only one.
    assert stage_channels(dense(76, 5, 5), dense(76, 5, 5), (3, 1, 76, 5, 5), bytes_per_number=2) == 0
    assert stage_channels(dense(76, 5, 5), dense(76, 5, 5), (3, 1, 76, 5, 5)) > 0
    assert stage_channels(dense(256, 128, 128), dense(256, 128, 128), (4, 1, 256, 128, 128)) == 0
    # For any number of maps: with two blocks each, as 400 maps would have, the stages would not fit.
    for batch in (1, 64, 256, 400, 1024):
        assert stage_channels(dense(512, 28, 28), dense(512, 28, 28), (batch, 1, 512, 28, 28)) > 0


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("side", [56, 128])
def test_long_sums_of_equal_numbers_stay_exact(cam, side, layout, method):
    """Unlike random gradients, these do not cancel, and neither do their rounding errors."""
    activations = LAYOUTS[layout](torch.randn(1, 16, side, side))
    gradients = LAYOUTS[layout](torch.randn(1, 16, 1, 1).expand(1, 16, side, side).clone())
    assert_agrees(activations, gradients, (side, side), CLOSE, cam, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_too_large_for_shared_memory_has_the_same_bits(cam, method):
    activations, gradients = inputs((2, 2, 20, 13, 17))
    expected = cam(activations, gradients, (40, 34), method=method)
    assert_same_bits(cam(activations, gradients, (40, 34), method=method, spill=True), expected)


@pytest.mark.parametrize("size", [(224, 224), (1, 1), (3, 1030), (7, 2), (300, 5)])
def test_every_row_and_column_of_every_size_is_written(cam, size):
    for blocks in BLOCKS:
        assert_agrees(*inputs((1, 0, 8, 7, 6)), size, CLOSE, partial(cam, blocks=blocks), relu=False)


@pytest.mark.parametrize(("long", "wide"), [(30_000, 30_000), (1_000, 1_000_000), (1_000_000, 1_000)])
def test_a_side_may_be_as_long_as_32_bits_allow(gpu_on_host, cam, long, wide):
    assert gpu_on_host.fits_int32(long, wide) and not gpu_on_host.fits_int32(long + long // 4, wide)
    assert_agrees(*inputs((1, 0, 3, 1, long)), (1, wide), CLOSE, cam)


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 8, 49, 448, 1000, 65_537, 2**29 - 3, 2**30, 2**31 - 1])
def test_division_by_multiplication_is_exact(gpu_on_host, divisor):
    multiples = torch.randint(2**31, (1000,)) // divisor * divisor
    ends = torch.tensor([0, 1, 2**31 - 1, (2**31 - 1) // divisor * divisor])
    numbers = (torch.cat([multiples, ends])[:, None] + torch.arange(-2, 3)).clamp(0, 2**31 - 1).flatten()
    assert gpu_on_host.quotients(numbers.numpy(), divisor).tolist() == (numbers // divisor).tolist()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["activations", "gradients"])
def test_a_broken_image_is_zeros_and_its_neighbours_do_not_change(cam, where, method, broken):
    activations, gradients = inputs((2, 0, 20, 5, 6))
    expected = cam(activations, gradients, (10, 12), method=method)
    {"activations": activations, "gradients": gradients}[where][0, 3, 2, 1] = broken
    for blocks in (1, 4):
        heatmap, low, high = cam(activations, gradients, (10, 12), method=method, blocks=blocks)
        assert not heatmap[0].any() and low[0].isnan() and high[0].isnan()
        assert_same_bits((heatmap[1], low[1], high[1]), [values[1] for values in expected])


@pytest.mark.parametrize("exponent", [-110, -40, 40, 90])
def test_scaling_the_gradients_by_a_power_of_two_changes_no_bit(cam, exponent):
    activations, gradients = inputs((1, 0, 20, 7, 7))
    expected = cam(activations, gradients, (20, 20))
    assert torch.equal(cam(activations, gradients * 2.0**exponent, (20, 20))[0], expected[0])


def test_a_flat_map_is_zeros(cam):
    for normalize in ("minmax", "max"):
        constant = torch.full((1, 4, 5, 5), 0.3)
        heatmap, low, high = cam(constant, constant, (11, 13), normalize=normalize)
        assert low == high > 0
        assert heatmap.eq(0.0 if normalize == "minmax" else 1.0).all()
    heatmap, low, high = cam(constant, -constant, (11, 13))
    assert not heatmap.any() and not low and not high
