"""The op beside eager PyTorch, torch.compile of the same lines, and the time of merely touching its memory.

    make bench

Two threads unless OMP_NUM_THREADS says otherwise. Nothing here fails on a clock.
"""

import pytest
import torch
from read_limit import read_limit
from torch.nn.functional import interpolate

import gradcam_fast

SHAPES = [
    ((1, 2048, 7, 7), 224, 300),
    ((1, 512, 14, 14), 224, 300),
    ((8, 1280, 7, 7), 224, 200),
    ((16, 2048, 7, 7), 224, 100),
    ((64, 2048, 7, 7), 224, 40),
    ((16, 512, 14, 14), 224, 100),
    ((4, 256, 128, 128), 1024, 20),
]


def eager(activations, gradients, size):
    maps = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True).relu()
    maps = interpolate(maps, size, mode="bilinear", align_corners=False)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def inputs(shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


@pytest.mark.parametrize(("shape", "side", "rounds"), SHAPES)
def test_against_eager_compiled_and_the_read_limit(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    out = torch.empty(shape[0], side, side)
    compiled = torch.compile(eager, dynamic=False)
    expected = eager(activations, gradients, (side, side))[:, 0]
    torch.testing.assert_close(gradcam_fast.cam(activations, gradients, side)[0], expected, rtol=0, atol=2e-5)
    compare(
        f"{shape} -> {side}",
        rounds,
        fused=lambda: gradcam_fast.cam(activations, gradients, side),
        limit=lambda: read_limit(activations, gradients, out),
        eager=lambda: eager(activations, gradients, (side, side)),
        compiled=lambda: compiled(activations, gradients, (side, side)),
    )


@pytest.mark.parametrize(("shape", "side", "rounds"), SHAPES[2:])
def test_other_types_and_layouts_against_float32_in_planes(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    bfloat16, half = inputs(shape, torch.bfloat16), inputs(shape, torch.float16)
    last = [maps.to(memory_format=torch.channels_last) for maps in (activations, gradients)]
    compare(
        f"{shape} types",
        rounds,
        float32=lambda: gradcam_fast.cam(activations, gradients, side),
        bfloat16=lambda: gradcam_fast.cam(*bfloat16, side),
        float16=lambda: gradcam_fast.cam(*half, side),
        channels_last=lambda: gradcam_fast.cam(*last, side),
    )


@pytest.mark.parametrize(("shape", "side", "rounds"), [SHAPES[2], SHAPES[5]])
def test_other_methods_and_ten_targets_against_gradcam(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    ten = torch.randn(shape[0], 10, *shape[1:])
    methods = {
        method.replace("+", "p"): lambda method=method: gradcam_fast.cam(activations, gradients, side, method=method)
        for method in ("gradcam", "gradcam++", "xgradcam", "hirescam", "elementwise", "layercam")
    }
    compare(f"{shape} methods", rounds, **methods, k10=lambda: gradcam_fast.cam(activations, ten, side))
