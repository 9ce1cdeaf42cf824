"""What only the fused kernel promises: agreement with the float64 reference for every shape, dtype and layout, the same
bits in any batch and on any number of threads, no copies, opcheck and torch.compile.
"""

import os
import platform
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.op_cases import DTYPES, LAYOUTS, SHAPES, assert_agrees, assert_same_bits, inputs
from support.tolerances import ROUNDED_INPUTS, SAME_INPUTS

import gradcam_fast
from gradcam_fast import reference
from gradcam_fast.ops.arguments import METHODS, NORMALIZATIONS
from gradcam_fast.ops.backend import kernel_for


def test_the_kernel_is_what_is_tested():
    assert kernel_for("cpu")


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_agrees_with_the_reference(shape, size, dtype, method, normalize, relu):
    tolerance = SAME_INPUTS[dtype]
    assert_agrees(*inputs(shape, dtype), size, tolerance, method=method, normalize=normalize, relu=relu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_the_map_of_their_originals(dtype):
    activations, gradients = torch.randn(4, 512, 7, 7).relu(), torch.randn(4, 512, 7, 7) + 0.1
    expected, _, _ = reference.cam(activations.double(), gradients.double(), 56)
    heatmap, _, _ = gradcam_fast.cam(activations.to(dtype), gradients.to(dtype), 56)
    torch.testing.assert_close(heatmap.double(), expected, rtol=0, atol=ROUNDED_INPUTS[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_exactly(dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    images = numbers[numbers.isfinite()].reshape(-1, 1, 1, 1)
    for result in gradcam_fast.cam(images, torch.ones_like(images), 1, normalize="none", relu=False):
        assert torch.equal(result.flatten(), images.float().flatten())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_the_same_map(layout, dtype, method):
    activations, gradients = inputs((2, 3, 70, 6, 5), dtype)
    stored = LAYOUTS[layout](activations), LAYOUTS[layout](gradients)
    assert torch.equal(stored[0], activations) and torch.equal(stored[1], gradients)
    assert_agrees(*stored, (24, 20), SAME_INPUTS[dtype], method=method)
    assert_agrees(stored[0], gradients, (24, 20), SAME_INPUTS[dtype], method=method)
    assert_agrees(activations, stored[1], (24, 20), SAME_INPUTS[dtype], method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [(6, 5), (1, 6), (9, 1), (2, 3), (14, 14)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_expanded_gradients_give_the_map_of_written_out_ones(layout, positions, dtype, method):
    """The gradient of a mean over positions is one number per channel, expanded with stride 0."""
    activations = LAYOUTS[layout](torch.randn(2, 70, *positions).to(dtype))
    one = torch.randn(2, 3, 70, 1, 1).to(dtype)
    for pooled in (one, one.transpose(1, 2).contiguous().transpose(1, 2), -one.abs()):
        gradients = pooled.expand(2, 3, 70, *positions)
        assert_agrees(activations, gradients, (24, 20), SAME_INPUTS[dtype], method=method)
        assert_agrees(activations[:1], gradients[:1, 0], (24, 20), SAME_INPUTS[dtype], method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gradient", [0.0, -0.0, 1e-42, 1e30, -1e30, float("inf"), float("nan")])
def test_an_expanded_gradient_may_have_any_value(gradient, method):
    activations, pooled = torch.rand(3, 9, 4, 4), torch.rand(3, 9, 1, 1)
    pooled[1, 4] = gradient
    from_expanded = gradcam_fast.cam(activations, pooled.expand(3, 9, 4, 4), 8, method=method)
    from_written_out = gradcam_fast.cam(activations, pooled.repeat(1, 1, 4, 4), 8, method=method)
    for result, expected in zip(from_expanded, from_written_out, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("positions", [(6, 1), (1, 6), (1, 1), (9, 1), (1, 17)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_maps_of_one_row_or_column(layout, positions, method):
    activations, gradients = inputs((2, 3, 11, *positions))
    stored = LAYOUTS[layout](activations), LAYOUTS[layout](gradients)
    assert_agrees(*stored, (12, 10), SAME_INPUTS[torch.float32], method=method)
    column = stored[0][..., -1:], stored[1][..., -1:]
    assert_agrees(*column, (12, 10), SAME_INPUTS[torch.float32], method=method)


def test_the_stride_of_a_side_of_one_is_ignored():
    activations, gradients = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs((2, 0, 8, 5, 1)))
    huge_stride = [t.as_strided(t.shape, (*t.stride()[:3], 2**40)) for t in (activations, gradients)]
    assert_agrees(*huge_stride, (10, 3), SAME_INPUTS[torch.float32])


def test_targets_need_not_lie_outermost_in_memory():
    activations, gradients = inputs((2, 4, 20, 6, 5))
    targets_inside = gradients.transpose(0, 1).contiguous().transpose(0, 1)
    targets_last = gradients.movedim(1, -1).contiguous().movedim(-1, 1)
    expected = gradcam_fast.cam(activations, gradients, 16)
    for stored in (targets_inside, targets_last):
        torch.testing.assert_close(gradcam_fast.cam(activations, stored, 16), expected, rtol=0, atol=1e-6)


def expanded(maps):
    return maps[..., :1, :1].expand(maps.shape)


@pytest.mark.parametrize("gradients_are", [lambda maps: maps, expanded], ids=["written out", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_has_the_same_bits_alone_in_any_place_and_on_any_number_of_threads(
    method, layout, gradients_are, threads
):
    activations, gradients = (LAYOUTS[layout](t) for t in inputs((9, 2, 300, 7, 7)))
    gradients = gradients_are(gradients)
    expected = gradcam_fast.cam(activations, gradients, 64, method=method)
    order = torch.randperm(9)
    for count in (1, 2, 3, 7):
        threads(count)
        assert_same_bits(gradcam_fast.cam(activations, gradients, 64, method=method), expected)
        shuffled = gradcam_fast.cam(
            LAYOUTS[layout](activations[order]),
            gradients_are(LAYOUTS[layout](gradients[order])),
            64,
            method=method,
        )
        assert_same_bits(shuffled, [result[order] for result in expected])
        for image in (0, 8):
            one = slice(image, image + 1)
            alone = gradcam_fast.cam(activations[one], gradients[one], 64, method=method)
            assert_same_bits(alone, [result[one] for result in expected])
        single_target = gradcam_fast.cam(activations, gradients[:, 1], 64, method=method)
        assert_same_bits(single_target, [result[:, 1] for result in expected])


@pytest.mark.parametrize("layout", ["contiguous", "tokens"])
@pytest.mark.parametrize("method", ["gradcam", "xgradcam", "hirescam"])
@pytest.mark.parametrize("shape", [(2, 1, 2048, 7, 7), (3, 1, 97, 40, 33), (1, 4, 64, 64, 64), (1, 3, 603, 23, 19)])
def test_large_maps_have_the_same_bits_on_any_number_of_threads(shape, method, layout, threads):
    activations, written_out = (LAYOUTS[layout](maps) for maps in inputs(shape))
    for gradients in (written_out, expanded(written_out)):
        threads(1)
        expected = gradcam_fast.cam(activations, gradients, (200, 301), method=method)
        for count in (2, 3, 7):
            threads(count)
            assert_same_bits(gradcam_fast.cam(activations, gradients, (200, 301), method=method), expected)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"relu": False}, {"normalize": "none"}, {"normalize": "max", "relu": False}])
def test_heatmaps_larger_than_the_cache_have_the_same_bits(options):
    activations, gradients = inputs((34, 0, 8, 7, 7))
    activations[1] = torch.nan
    for size in ((512, 512), (512, 509)):
        heatmap, low, high = gradcam_fast.cam(activations, gradients, size, **options)
        assert heatmap.nbytes > 32 << 20
        for i in (0, 1, 17, 33):
            alone = gradcam_fast.cam(activations[i : i + 1], gradients[i : i + 1], size, **options)
            in_batch = (heatmap[i : i + 1], low[i : i + 1], high[i : i + 1])
            assert all(torch.equal(b.nan_to_num(7), a.nan_to_num(7)) for b, a in zip(in_batch, alone, strict=True))


RUN_CASES = """
import sys, torch, gradcam_fast
cases = torch.load(sys.argv[1])
torch.save([gradcam_fast.cam(a, g, (33, 50), method=method) for a, g, method in cases], sys.argv[2])
print(gradcam_fast.backend())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only on x86-64 is there a choice of instruction sets")
def test_every_instruction_set_gives_the_same_bits(tmp_path):
    shapes = [(2, 0, 70, 7, 7), (1, 2, 70, 14, 14), (2, 0, 9, 1, 3), (1, 0, 70, 30, 31)]
    cases = [
        (*map(LAYOUTS[layout], inputs(shape, dtype)), method)
        for shape, dtype, layout, method in product(shapes, DTYPES, ("contiguous", "tokens"), METHODS)
    ]
    torch.save(cases, tmp_path / "cases")
    by_capability = {}
    here = str(Path(gradcam_fast.__file__).parents[1])
    for capability in ("default", "avx2", "avx512"):
        child = subprocess.run(
            [sys.executable, "-c", RUN_CASES, tmp_path / "cases", tmp_path / capability],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": here, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = re.search(r"uses (\S+)", child.stdout)[1]
        assert (used == "x86-64") == (capability == "default" or "avx2" not in Path("/proc/cpuinfo").read_text())
        by_capability[capability] = torch.load(tmp_path / capability)
    for results in zip(*by_capability.values(), strict=True):
        for result in results[1:]:
            assert_same_bits(result, results[0])


@pytest.mark.parametrize("exponent", [-60, -17, 1, 40])
@pytest.mark.parametrize("normalize", ["minmax", "max"])
def test_a_power_of_two_in_the_gradients_changes_no_bit(normalize, exponent):
    activations, gradients = inputs((2, 0, 100, 7, 7))
    expected = gradcam_fast.cam(activations, gradients, 50, normalize=normalize)
    heatmap, _, high = gradcam_fast.cam(activations, gradients * 2.0**exponent, 50, normalize=normalize)
    assert torch.equal(heatmap, expected[0])
    assert torch.equal(high, expected[2] * 2.0**exponent)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape_agrees_with_the_reference(data):
    side = st.integers(1, 40)
    b, c = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 150))
    h, w, height, width = (data.draw(side) for _ in range(4))
    k = data.draw(st.integers(0, 3))
    method, normalize = data.draw(st.sampled_from(METHODS)), data.draw(st.sampled_from(NORMALIZATIONS))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    dtype = data.draw(st.sampled_from(DTYPES))
    stored = [LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](t) for t in inputs((b, k, c, h, w), dtype)]
    assert_agrees(*stored, (height, width), SAME_INPUTS[dtype], method=method, normalize=normalize)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_normalised_map_reaches_exactly_0_and_1(data):
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    h, w, height, width = (data.draw(st.integers(2, 30)) for _ in range(4))
    heatmap, low, high = gradcam_fast.cam(torch.randn(1, 8, h, w), torch.randn(1, 8, h, w), (height, width), relu=False)
    assert (heatmap.min().item(), heatmap.max().item()) == (0.0, 1.0)
    assert low < high


def test_activations_and_gradients_are_not_copied():
    """In every layout PyTorch allocates no more in a call than the call returns.

    The kernel's own buffers, of a few channels, are not PyTorch's.
    """
    for as_layout in LAYOUTS.values():
        activations, gradients = (as_layout(t) for t in inputs((4, 0, 256, 7, 7), torch.bfloat16))
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            results = gradcam_fast.cam(activations, gradients, 32)
        (call,) = (event for event in profile.function_events if event.name == "gradcam_fast::cam")
        assert call.cpu_memory_usage == sum(result.numel() * result.element_size() for result in results)


def test_the_operator_passes_opcheck():
    operator = torch.ops.gradcam_fast.cam.default
    activations, gradients = inputs((2, 0, 8, 5, 6))
    requiring = activations.clone().requires_grad_(), gradients.clone().requires_grad_()
    for a, g in ((activations, gradients), (activations, inputs((2, 3, 8, 5, 6))[1]), requiring):
        results = torch.library.opcheck(operator, (a, g, 11, 12, 0, 0, True))
        assert set(results.values()) == {"SUCCESS"}
    assert not any(result.requires_grad for result in operator(*requiring, 11, 12, 0, 0, True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_traces_the_op_into_one_graph(dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def halved(activations, gradients, size):
        heatmap, low, high = gradcam_fast.cam(activations * 1, gradients, size, method="layercam")
        return heatmap / 2, high - low

    for batch, size in ((2, (9, 8)), (3, (10, 11))):
        activations, gradients = inputs((batch, 2, 6, 4, 5))
        heatmap, low, high = gradcam_fast.cam(activations, gradients, size, method="layercam")
        assert_same_bits(halved(activations, gradients, size), (heatmap / 2, high - low))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": torch.zeros(2, 3, 4)}, r"activations should be \(B,C,h,w\), got 3D"),
        ({"gradients": torch.zeros(2, 3, 4, 5)}, "differ in B, C, h or w"),
        ({"gradients": torch.zeros(2, 3, 4, 4, dtype=torch.float64)}, "differ in dtype"),
        ({"height": 0}, "size should be at least 1x1, got 0x4"),
        ({"method": 6}, "method should be below 6, got 6"),
        ({"normalize": -1}, "normalize should be below 3, got -1"),
    ],
)
def test_the_registered_operator_checks_its_arguments(change, message):
    arguments = {
        "activations": torch.zeros(2, 3, 4, 4), "gradients": torch.zeros(2, 3, 4, 4), "height": 4, "width": 4,
        "method": 0, "normalize": 0, "relu": True,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gradcam_fast.cam(**{**arguments, **change})
