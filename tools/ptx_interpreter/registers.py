"""Registers as numpy arrays with a number for each thread, seen as whatever type an instruction takes them for."""

import re

import numpy as np

from .faults import Unsupported

DTYPES = {
    "pred": np.dtype(bool),
    **{f"{letter}{bits}": np.dtype(f"uint{bits}") for letter in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}


def forget(array):
    """What a register holds before anything is written to it."""
    array.view(np.uint8)[:] = 1 if array.dtype.kind == "b" else 0xA5


def dtype_of(kind):
    if kind not in DTYPES:
        raise Unsupported(f"no numbers of type .{kind} are known")
    return DTYPES[kind]


def literal(text, dtype):
    """A number as it is written in PTX, or None for what is no number."""
    if found := re.fullmatch(r"0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", text):
        bits = np.array(int(found[2], 16), np.uint32 if found[1] in "fF" else np.uint64)
        if bits.dtype.itemsize != dtype.itemsize:
            raise Unsupported(f"{text} is not a number of {dtype}")
        return bits.view(dtype)[()]
    if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return None
    value = int(text.rstrip("U"), 0)
    if dtype.kind == "b":
        return np.bool_(value != 0)
    if dtype.kind == "f":
        raise Unsupported(f"{text} is not written as a number of {dtype}")
    bits = np.array(value & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}")
    return bits.view(dtype)[()]


class Registers:
    """`values` holds special registers and the addresses of names: numbers, or one for each thread."""

    def __init__(self, kernel, threads, values):
        self.kinds = kernel.registers
        self.threads = threads
        self.values = values
        self.arrays = {}

    def forget(self):
        for array in self.arrays.values():
            forget(array)

    def array(self, name):
        if name not in self.arrays:
            self.arrays[name] = np.zeros(self.threads, dtype_of(self.kinds[name]))
            forget(self.arrays[name])
        return self.arrays[name]

    def read(self, operand, kind, *, wider=False):
        """A number or an array of them, which changes as the register does; the register may be `wider` than that."""
        dtype = dtype_of(kind)
        if operand in self.kinds:
            array = self.array(operand)
            if wider and array.itemsize > dtype.itemsize and dtype.kind != "b":
                return array.view(dtype)[:: array.itemsize // dtype.itemsize]
            self.must_fit(operand, array, dtype)
            return array.view(dtype)
        if operand in self.values:
            return self.values[operand].astype(dtype, copy=False)
        value = literal(operand, dtype)
        if value is None:
            raise Unsupported(f"{operand} is not known")
        return value

    def write(self, operand, kind, *, wider=False):
        """The array to write to. In one that is `wider` a number is extended by its sign, if it can have one."""
        dtype = dtype_of(kind)
        if operand == "_":
            return np.empty(self.threads, dtype)
        if operand not in self.kinds:
            raise Unsupported(f"{operand} is no register")
        array = self.array(operand)
        if wider and array.itemsize > dtype.itemsize and dtype.kind in "iu":
            return array.view(f"{dtype.kind}{array.itemsize}")
        self.must_fit(operand, array, dtype)
        return array.view(dtype)

    def must_fit(self, operand, array, dtype):
        if array.itemsize != dtype.itemsize or (array.dtype.kind == "b") != (dtype.kind == "b"):
            raise Unsupported(f"{operand} of .{self.kinds[operand]} is not taken for {dtype}")
