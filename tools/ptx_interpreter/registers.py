"""Registers: numpy arrays with one number per thread, viewed in the type that an instruction asks for."""

import re

import numpy as np

from .faults import Unsupported

NUMPY_DTYPES = {
    "pred": np.dtype(bool),
    **{f"{letter}{bits}": np.dtype(f"uint{bits}") for letter in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}


def forget(array):
    """Fill a register with the value it holds before its first write."""
    array.view(np.uint8)[:] = 1 if array.dtype.kind == "b" else 0xA5


def dtype_of(kind):
    if kind not in NUMPY_DTYPES:
        raise Unsupported(f"type .{kind} is not supported")
    return NUMPY_DTYPES[kind]


def literal(text, dtype):
    """The value of a PTX literal, or None if the text is not a number."""
    if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]{8}|[0-9a-fA-F]{16})", text):
        bits = np.array(int(match[2], 16), np.uint32 if match[1] in "fF" else np.uint64)
        if bits.dtype.itemsize != dtype.itemsize:
            raise Unsupported(f"{text} is not a number of {dtype}")
        return bits.view(dtype)[()]
    if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return None
    value = int(text.rstrip("U"), 0)
    if dtype.kind == "b":
        return np.bool_(value != 0)
    if dtype.kind == "f":
        raise Unsupported(f"{text} is not a literal of {dtype}")
    bits = np.array(value & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}")
    return bits.view(dtype)[()]


class Registers:
    """The registers of a kernel; `values` holds the special registers and the addresses of names."""

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
        """A number, or a view of the register, which may be `wider` than `kind`."""
        dtype = dtype_of(kind)
        if operand in self.kinds:
            array = self.array(operand)
            if wider and array.itemsize > dtype.itemsize and dtype.kind != "b":
                return array.view(dtype)[:: array.itemsize // dtype.itemsize]
            self.require_fit(operand, array, dtype)
            return array.view(dtype)
        if operand in self.values:
            return self.values[operand].astype(dtype, copy=False)
        value = literal(operand, dtype)
        if value is None:
            raise Unsupported(f"{operand} is not supported")
        return value

    def write(self, operand, kind, *, wider=False):
        """The array to write to. In a register that is `wider` than `kind`, integers are extended, with their sign."""
        dtype = dtype_of(kind)
        if operand == "_":
            return np.empty(self.threads, dtype)
        if operand not in self.kinds:
            raise Unsupported(f"{operand} is not a register")
        array = self.array(operand)
        if wider and array.itemsize > dtype.itemsize and dtype.kind in "iu":
            return array.view(f"{dtype.kind}{array.itemsize}")
        self.require_fit(operand, array, dtype)
        return array.view(dtype)

    def require_fit(self, operand, array, dtype):
        if array.itemsize != dtype.itemsize or (array.dtype.kind == "b") != (dtype.kind == "b"):
            raise Unsupported(f"{operand} of .{self.kinds[operand]} cannot be used as {dtype}")
