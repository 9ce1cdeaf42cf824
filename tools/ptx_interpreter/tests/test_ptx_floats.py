"""The PTX interpreter's float arithmetic, against torch and exact fractions."""

import operator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from ptx_interpreter import Fault
from small_kernels import compute, run
from test_ptx_integers import integer_pairs, wrapped

# A change of the package leaves the interpreter as it is.
pytestmark = pytest.mark.slow

FLOATS = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.1, 3.0, -7.5, 1e-45, -1e-38, 1.1754942e-38, 3.4028235e38, 16777217.0, 2.5, 3.5, -0.5, 1e10,
     -3e9, 2147483648.0, -2147483648.0, 1e20, -1e20, np.inf, -np.inf, np.nan], np.float32,
)  # fmt: skip
PAIRS = np.array(list(product(FLOATS, FLOATS)), np.float32).T.copy()


def assert_same_bits(computed, expected):
    """The same bits, except that any NaN equals any other."""
    computed, expected = torch.from_numpy(computed.copy()), expected.contiguous()
    assert torch.equal(computed.isnan(), expected.isnan())
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[computed.element_size()]
    assert torch.equal(computed.nan_to_num(0.0).view(bits), expected.nan_to_num(0.0).view(bits))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("add", operator.add), ("sub", operator.sub), ("mul", operator.mul), ("div", operator.truediv)],
)
def test_floats_are_rounded_to_the_nearest(name, expected):
    a, b = PAIRS
    computed = compute(f"{name}.rn.f32 %z, %a, %b;", "f32", a=("f32", a), b=("f32", b)).view(np.float32)
    assert_same_bits(computed, expected(torch.from_numpy(a), torch.from_numpy(b)))
    a, b = a.astype(np.float64) / 3, b.astype(np.float64) / 7
    computed = compute(f"{name}.rn.f64 %z, %a, %b;", "f64", a=("f64", a), b=("f64", b)).view(np.float64)
    assert_same_bits(computed, expected(torch.from_numpy(a), torch.from_numpy(b)))


def test_a_product_that_may_be_fused_is_refused():
    with pytest.raises(Fault, match=r"without \.rn the compiler may fuse it"):
        run("mul.f32 %f1, %f2, %f3;")


def test_a_fused_product_and_sum_is_rounded_once():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 512)).astype(np.float32)
    # Sums that almost cancel, and sums whose terms differ so much that only the last bit is at stake.
    c = (-a * b * np.repeat(np.array([1, 1, 2**-30, 2**30], np.float32), 128)).astype(np.float32)
    computed = compute("fma.rn.f32 %z, %a, %b, %c;", "f32", a=("f32", a), b=("f32", b), c=("f32", c)).view(np.float32)
    for x, y, z, sum_ in zip(a, b, c, computed, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        neighbours = [np.nextafter(sum_, np.float32(to)) for to in (-np.inf, np.inf)]
        error = abs(Fraction(float(sum_)) - exact)
        assert all(error <= abs(Fraction(float(neighbour)) - exact) for neighbour in neighbours)


@pytest.mark.parametrize("name", ["min", "max"])
def test_a_nan_is_never_the_extreme(name):
    a, b = PAIRS
    computed = compute(f"{name}.f32 %z, %a, %b;", "f32", a=("f32", a), b=("f32", b)).view(np.float32)

    def extreme(*pair):
        numbers = [number for number in pair if not np.isnan(number)] or [np.float32(np.nan)]
        # Minus zero is below zero.
        return {"min": min, "max": max}[name](numbers, key=lambda x: (float(x), not np.signbit(x)))

    assert_same_bits(computed, torch.from_numpy(np.array(list(map(extreme, a, b)), np.float32)))


ORDERED = {
    "eq": operator.eq,
    "ne": lambda a, b: a != b and a == a and b == b,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "num": lambda a, b: a == a and b == b,
}


@pytest.mark.parametrize("name", [*ORDERED, "equ", "neu", "ltu", "leu", "gtu", "geu", "nan"])
def test_comparisons_that_end_in_u_are_true_for_nan(name):
    a, b = PAIRS
    computed = compute(f"setp.{name}.f32 %p1, %a, %b; selp.b32 %z, 1, 0, %p1;", "b32", a=("f32", a), b=("f32", b))

    def expected(x, y):
        if name == "nan":
            return x != x or y != y
        if name.endswith("u"):
            return x != x or y != y or ORDERED[name[:-1]](x, y)
        return ORDERED[name](x, y)

    assert computed.tolist() == [expected(float(x), float(y)) for x, y in zip(a, b, strict=True)]


def test_every_half_is_converted_to_its_float_and_back():
    for begin in range(0, 65536, 2048):
        halves = np.arange(begin, begin + 2048, dtype=np.uint16)
        expected = torch.from_numpy(halves.view(np.float16).copy()).float()
        computed = compute("cvt.f32.f16 %z, %a;", "f32", a=("b16", halves)).view(np.float32)
        assert_same_bits(computed, expected)
        assert_same_bits(
            compute("cvt.rn.f16.f32 %z, %a;", "b16", a=("f32", computed)).view(np.float16), expected.half()
        )


def test_a_float_between_two_halves_is_rounded_to_even():
    generator = np.random.default_rng(0)
    floats = generator.standard_normal(512).astype(np.float32) * np.float32(10.0) ** generator.integers(-9, 6, 512)
    floats = np.concatenate([floats, (2049 + 2 * np.arange(64)).astype(np.float32)]).astype(np.float32)
    computed = compute("cvt.rn.f16.f32 %z, %a;", "b16", a=("f32", floats)).view(np.float16)
    assert_same_bits(computed, torch.from_numpy(floats).half())


@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("of", ["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "rounded"), [("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_floats_out_of_range_become_the_nearest_integer_limit(to, of, name, rounded):
    """NaN becomes zero or, if either side has 64 bits, the highest bit alone."""
    bits = int(to[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if to[0] == "s" else (0, 2**bits - 1)
    floats = FLOATS.astype(f"f{int(of[1:]) // 8}")
    stored = f"{to[0]}{max(bits, 16)}"
    computed = compute(f"cvt.{name}.{to}.{of} %z, %a;", stored, a=(of, floats))
    broken = 2 ** (bits - 1) if 64 in (bits, int(of[1:])) else 0
    if to[0] == "s" and broken:
        broken = -broken
    expected = [
        broken if np.isnan(x) else low if x == -np.inf else high if x == np.inf
        else min(max(int(rounded(np.float64(x))), low), high) for x in floats
    ]  # fmt: skip
    assert computed.tolist() == wrapped(expected, stored)


@pytest.mark.parametrize("of", ["s32", "u32", "s64", "u64"])
def test_integers_become_the_nearest_float(of):
    a = np.concatenate(
        [integer_pairs(of)[0], np.array([2**24 + 1, 2**24 + 3, 2**30 + 65, 2**30 + 64], integer_pairs(of).dtype)]
    )
    computed = compute(f"cvt.rn.f32.{of} %z, %a;", "f32", a=(of, a)).view(np.float32)
    for x, nearest in zip(a.tolist(), computed, strict=True):
        error = abs(Fraction(float(nearest)) - x)
        for to in (-np.inf, np.inf):
            other = np.nextafter(nearest, np.float32(to))
            further = abs(Fraction(float(other)) - x)
            assert error < further or (error == further and nearest.view(np.uint32) % 2 == 0)
