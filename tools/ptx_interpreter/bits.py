"""Instructions on bits: bit fields, funnel shifts, byte permutes, counts, and three-input logic."""

import numpy as np

from .faults import require_form
from .registers import dtype_of


def lop3(instruction, modifiers):
    require_form(instruction, modifiers, [("b32",)])

    def lookup(a, b, c, table):
        result = np.uint32(0)
        for i in range(8):
            if table >> i & 1:
                result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    return lookup, ["b32"] * 4 + ["u32"]


def bfi(instruction, modifiers):
    """Insert the lowest bits of a into b: `length` bits from bit `begin` on."""
    require_form(instruction, modifiers, [("b32",), ("b64",)])
    number = dtype_of(modifiers[0]).type

    def insert(a, b, begin, length):
        begin, length = (operand.astype(number) & number(0xFF) for operand in (begin, length))
        field = ((number(1) << length) - number(1)) << begin
        return b & ~field | a << begin & field

    return insert, [modifiers[0]] * 3 + ["u32"] * 2


def bfe(instruction, modifiers):
    """Extract `length` bits from bit `begin` on; signed fields are extended by their highest bit, or the word's."""
    require_form(instruction, modifiers, [("u32",), ("s32",), ("u64",), ("s64",)])
    number = dtype_of(modifiers[0])
    bits = 8 * number.itemsize

    def extract(a, begin, length):
        begin, length = (operand & np.uint32(0xFF) for operand in (begin, length))
        if number.kind == "u":
            ones = (number.type(1) << length.astype(number)) - number.type(1)
            return (a >> begin.astype(number)) & ones
        over = (np.uint32(bits) - np.minimum(length, np.uint32(bits))).astype(number)
        field = (a >> np.minimum(begin, np.uint32(bits - 1)).astype(number)) << over >> over
        return np.where(length == 0, number.type(0), field)

    return extract, [modifiers[0]] * 2 + ["u32"] * 2


def shf(instruction, modifiers):
    """Shift two words as one; the result is the upper half of a left shift, the lower half of a right shift."""
    require_form(instruction, modifiers, [(way, how, "b32") for way in "lr" for how in ("wrap", "clamp")])
    left, wrap = modifiers[0] == "l", modifiers[1] == "wrap"

    def funnel(low, high, by):
        by = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        return (both << by >> np.uint64(32) if left else both >> by).astype(np.uint32)

    return funnel, ["b32"] * 3 + ["u32"]


def prmt(instruction, modifiers):
    """Choose four of eight bytes, by four bits each: three select the byte, the fourth replicates its sign instead."""
    require_form(instruction, modifiers, [("b32",)])

    def pick(low, high, selectors):
        both, result = high.astype(np.uint64) << np.uint64(32) | low, np.uint32(0)
        for i in range(4):
            selector = selectors >> np.uint32(4 * i) & np.uint32(15)
            byte = (both >> (selector & np.uint32(7)).astype(np.uint64) * np.uint64(8)).astype(np.uint8)
            byte = np.where(selector & np.uint32(8), (byte.view(np.int8) >> 7).view(np.uint8), byte)
            result = result | byte.astype(np.uint32) << np.uint32(8 * i)
        return result

    return pick, ["b32"] * 4


def popc(instruction, modifiers):
    require_form(instruction, modifiers, [("b32",), ("b64",)])
    number = dtype_of(modifiers[0]).type
    places = [number(i) for i in range(int(modifiers[0][1:]))]
    return lambda a: sum((a >> i & number(1)).astype(np.uint32) for i in places), ["u32", modifiers[0]]


def brev(instruction, modifiers):
    require_form(instruction, modifiers, [("b32",), ("b64",)])
    number = dtype_of(modifiers[0]).type
    last = int(modifiers[0][1:]) - 1
    return lambda a: sum((a >> number(i) & number(1)) << number(last - i) for i in range(last + 1)), [modifiers[0]] * 2


def clz(instruction, modifiers):
    """Leading zeros: the number of shifts (0 to the width less one) whose result is zero."""
    require_form(instruction, modifiers, [("b32",), ("b64",)])
    number = dtype_of(modifiers[0]).type
    places = [number(i) for i in range(int(modifiers[0][1:]))]
    return lambda a: sum((a >> i == 0).astype(np.uint32) for i in places), ["u32", modifiers[0]]


BIT_INSTRUCTIONS = {
    "lop3": lop3,
    "bfi": bfi,
    "bfe": bfe,
    "shf": shf,
    "prmt": prmt,
    "popc": popc,
    "brev": brev,
    "clz": clz,
}
