"""Integer arithmetic: wide products, shifts, divisions."""

import operator

import numpy as np

from .faults import Fault, require_form
from .registers import dtype_of


def product(instruction, modifiers):
    """mul: the lower half, the upper half or all of a product."""
    require_form(instruction, modifiers[:-1], [("lo",), ("hi",), ("wide",)])
    half, kind = modifiers
    bits = 8 * dtype_of(kind).itemsize
    if half == "lo":
        return operator.mul, [kind] * 3
    if bits == 64:
        require_form(instruction, modifiers, [("hi", "u64")])
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
    """Shifts by the width or more leave only zeros or sign bits, as numpy does for a shift by the width."""

    def form(instruction, modifiers):
        require_form(instruction, modifiers[:-1], [()])
        number = dtype_of(modifiers[-1])
        most = np.uint32(8 * number.itemsize)
        return lambda a, b: function(a, np.minimum(b, most).astype(number)), [modifiers[-1]] * 2 + ["u32"]

    return form


def compile_division(instruction, registers):
    """Division rounds towards zero. PTX does not define division by zero, so it is a Fault."""
    name, kind = instruction.parts
    number, unsigned = dtype_of(kind), dtype_of(f"u{kind[1:]}")
    divide = np.floor_divide if name == "div" else np.remainder
    result, *operands = instruction.operands
    target = registers.write(result, kind)
    a, b = (registers.read(operand, kind) for operand in operands)

    def magnitude(x):
        return np.where(x < 0, -x, x).astype(unsigned)

    def run(group):
        lanes = group.lanes
        x, y = (operand[lanes] if operand.ndim else operand for operand in (a, b))
        if not np.all(y):
            first_zero = np.argmin(np.broadcast_to(y, lanes.shape) != 0)
            raise Fault(f"{instruction}: {group.thread(first_zero)}: a division by zero")
        if number.kind == "u":
            target[lanes] = divide(x, y)
            return
        quotient = divide(magnitude(x), magnitude(y)).astype(number)
        target[lanes] = np.where((x < 0) ^ (y < 0) if name == "div" else x < 0, -quotient, quotient)

    return run
