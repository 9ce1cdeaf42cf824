"""Whole numbers: products of twice the width, shifts, divisions."""

import operator

import numpy as np

from .faults import Fault, must_be
from .registers import dtype_of


def product(instruction, modifiers):
    """mul: the lower or the upper half of a product, or all of it."""
    must_be(instruction, modifiers[:-1], [("lo",), ("hi",), ("wide",)])
    half, kind = modifiers
    bits = 8 * dtype_of(kind).itemsize
    if half == "lo":
        return operator.mul, [kind] * 3
    if bits == 64:
        must_be(instruction, modifiers, [("hi", "u64")])
        return _upper_half, [kind] * 3
    wide = f"{kind[0]}{2 * bits}"
    number = dtype_of(wide)

    def whole(a, b):
        return a.astype(number) * b.astype(number)

    if half == "wide":
        return whole, [wide, kind, kind]
    return lambda a, b: (whole(a, b) >> number.type(bits)).astype(dtype_of(kind)), [kind] * 3


def _upper_half(a, b):
    half, lower = np.uint64(32), np.uint64(0xFFFFFFFF)
    first = (a >> half) * (b & lower) + ((a & lower) * (b & lower) >> half)
    second = (a & lower) * (b >> half) + (first & lower)
    return (a >> half) * (b >> half) + (first >> half) + (second >> half)


def mad(instruction, modifiers):
    multiply, (result, *kinds) = product(instruction, modifiers)
    return lambda a, b, c: multiply(a, b) + c, [result, *kinds, result]


def shift(function):
    """By more than there are bits: nothing is left, or the sign; numpy agrees."""

    def known(instruction, modifiers):
        must_be(instruction, modifiers[:-1], [()])
        number = dtype_of(modifiers[-1])
        most = np.uint32(8 * number.itemsize)
        return lambda a, b: function(a, np.minimum(b, most).astype(number)), [modifiers[-1]] * 2 + ["u32"]

    return known


def compile_division(instruction, registers):
    """Towards zero. What a GPU makes of a division by zero is nowhere said."""
    name, kind = instruction.parts
    number, unsigned = dtype_of(kind), dtype_of(f"u{kind[1:]}")
    divide = np.floor_divide if name == "div" else np.remainder
    result, *operands = instruction.operands
    target = registers.write(result, kind)
    a, b = (registers.read(each, kind) for each in operands)

    def magnitude(x):
        return np.where(x < 0, -x, x).astype(unsigned)

    def run(group):
        lanes = group.lanes
        x, y = (each[lanes] if each.ndim else each for each in (a, b))
        if not np.all(y):
            which = np.argmin(np.broadcast_to(y, lanes.shape) != 0)
            raise Fault(f"{instruction}: {group.thread(which)}: a division by zero")
        if number.kind == "u":
            target[lanes] = divide(x, y)
            return
        found = divide(magnitude(x), magnitude(y)).astype(number)
        target[lanes] = np.where((x < 0) ^ (y < 0) if name == "div" else x < 0, -found, found)

    return run
