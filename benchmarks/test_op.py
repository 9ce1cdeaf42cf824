"""The op beside eager PyTorch, torch.compile of the same lines, and the read limit.

    make bench BENCH=benchmarks/test_op.py

No test fails because of a time.
"""

import pytest
import torch
from contenders import eager_cam
from read_limit import read_limit

import gradcam_fast
from gradcam_fast.ops import skinny_mm
from gradcam_fast.ops.arguments import METHODS

SHAPES = [
    ((1, 2048, 7, 7), 224, 300),
    ((1, 512, 14, 14), 224, 300),
    ((8, 1280, 7, 7), 224, 200),
    ((16, 2048, 7, 7), 224, 100),
    ((64, 2048, 7, 7), 224, 40),
    ((16, 512, 14, 14), 224, 100),
    ((4, 256, 128, 128), 1024, 20),
]


def inputs(shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


@pytest.mark.parametrize(("shape", "side", "rounds"), SHAPES)
def test_against_eager_compiled_and_the_read_limit(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    out = torch.empty(shape[0], side, side)
    compiled = torch.compile(eager_cam, dynamic=False)
    expected = eager_cam(activations, gradients, (side, side))[:, 0]
    torch.testing.assert_close(gradcam_fast.cam(activations, gradients, side)[0], expected, rtol=0, atol=2e-5)
    compare(
        "the operator",
        f"{shape} to {side}",
        {
            "fused": lambda: gradcam_fast.cam(activations, gradients, side),
            "limit": lambda: read_limit(activations, gradients, out),
            "eager": lambda: eager_cam(activations, gradients, (side, side)),
            "compiled": lambda: compiled(activations, gradients, (side, side)),
        },
        ("eager/fused", "compiled/fused", "fused/limit"),
        rounds=rounds,
        facts={"bytes": activations.nbytes + gradients.nbytes + out.nbytes},
    )


@pytest.mark.parametrize(("shape", "side", "rounds"), SHAPES[2:])
def test_other_types_and_layouts_against_float32_in_planes(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    bfloat16, half = inputs(shape, torch.bfloat16), inputs(shape, torch.float16)
    last = [maps.to(memory_format=torch.channels_last) for maps in (activations, gradients)]
    tokens = [maps.flatten(2).mT.contiguous().mT.unflatten(2, shape[2:]) for maps in (activations, gradients)]
    # Expanded gradients, as global average pooling gives them. Each contender has its own inputs, so that no other has
    # brought them into the cache.
    expanded = activations.clone(), gradients[:, :, :1, :1].clone().expand(shape)
    compare(
        "types and layouts",
        f"{shape} to {side}",
        {
            "float32": lambda: gradcam_fast.cam(activations, gradients, side),
            "bfloat16": lambda: gradcam_fast.cam(*bfloat16, side),
            "float16": lambda: gradcam_fast.cam(*half, side),
            "channels_last": lambda: gradcam_fast.cam(*last, side),
            "tokens": lambda: gradcam_fast.cam(*tokens, side),
            "expanded": lambda: gradcam_fast.cam(*expanded, side),
        },
        ("bfloat16/float32", "float16/float32", "channels_last/float32", "tokens/float32", "expanded/float32"),
        rounds=rounds,
    )


@pytest.mark.parametrize(("shape", "side", "rounds"), SHAPES[2:6])
def test_other_methods_against_gradcam(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    # Most layers end in a ReLU. It matters to Grad-CAM++ alone, which divides in double precision where the sum of a
    # channel is negative.
    activations = activations.relu()
    methods = {
        method: lambda method=method: gradcam_fast.cam(activations, gradients, side, method=method)
        for method in METHODS
    }
    ratios = [f"{method}/gradcam" for method in methods if method != "gradcam"]
    compare("methods", f"{shape} to {side}", methods, ratios, rounds=rounds)


# The last one exceeds the cache even with one target, so that memory alone decides what ten cost.
TEN_TARGETS_SHAPES = [*SHAPES[:3], SHAPES[5], ((8, 1280, 7, 7), 56, 200), ((64, 2048, 7, 7), 56, 20)]


@pytest.mark.parametrize(("shape", "side", "rounds"), TEN_TARGETS_SHAPES)
def test_ten_targets_against_one(compare, shape, side, rounds):
    activations, gradients = inputs(shape)
    ten = torch.randn(shape[0], 10, *shape[1:])
    one_map, ten_maps = torch.empty(shape[0], side, side), torch.empty(shape[0], 10, side, side)
    compare(
        "ten targets that share the activations",
        f"{shape} to {side}",
        {
            "one": lambda: gradcam_fast.cam(activations, gradients, side),
            "ten": lambda: gradcam_fast.cam(activations, ten, side),
            "one_limit": lambda: read_limit(activations, gradients, one_map),
            "ten_limit": lambda: read_limit(activations, ten, ten_maps),
        },
        ("ten/one", "ten_limit/one_limit", "ten/ten_limit"),
        rounds=rounds,
    )


@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize(("inner", "columns", "rounds"), [(4096, 4096, 60), (4096, 25088, 15)])
def test_a_few_rows_times_a_large_matrix(compare, inner, columns, rows, rounds):
    """The backward of one image through the two hidden layers of VGG16's head, for one class or ten."""
    torch.manual_seed(0)
    gradients = torch.randn(rows, inner)
    half_zero = gradients * (torch.rand(inner) < 0.5)
    weight, out = torch.randn(inner, columns), torch.empty(rows, columns)
    half = weight[: inner // 2]
    compare(
        "a few rows times a large matrix",
        f"{rows} x ({inner}, {columns})",
        {
            "all": lambda: skinny_mm.mm(gradients, weight),
            "mm": lambda: torch.mm(gradients, weight),
            "limit": lambda: read_limit(half, weight[inner // 2 :], out),
            "half zero": lambda: skinny_mm.mm(half_zero, weight),
            "mm half zero": lambda: torch.mm(half_zero, weight),
            "half limit": lambda: read_limit(half[: inner // 4], half[inner // 4 :], out),
        },
        ("mm/all", "all/limit", "mm half zero/half zero", "half zero/half limit"),
        rounds=rounds,
    )


def test_what_a_call_costs(compare):
    activations, gradients = inputs((1, 8, 2, 2))
    compare(
        "a call that computes next to nothing",
        "(1, 8, 2, 2) to 2",
        {
            "cam": lambda: gradcam_fast.cam(activations, gradients, 2),
            "op": lambda: torch.ops.gradcam_fast.cam.default(activations, gradients, 2, 2, 0, 0, True),
            "relu": lambda: torch.relu(activations),
        },
        ("cam/op", "cam/relu"),
        rounds=2000,
    )
