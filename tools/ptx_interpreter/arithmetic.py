"""Instructions that compute from registers alone: INSTRUCTIONS maps the name of an instruction to its function.

A function takes arrays (or numbers) and returns an array. Floats are rounded to nearest; where PTX lets the compiler
fuse operations or flush subnormal numbers, the instruction is refused.
"""

import operator

import numpy as np

from . import bits, integers
from .comparisons import compile_setp
from .conversions import conversion
from .faults import Fault, Unsupported, require_form
from .registers import dtype_of


def compile_arithmetic(instruction, registers):
    """A function that computes for the threads of a group, or None for other instructions."""
    name, *modifiers = instruction.parts
    if name == "cvt":
        result_kind, operand_kind, function = conversion(instruction)
        result, operand = instruction.operands
        target = registers.write(result, result_kind, wider=True)
        return _write_result(target, function, [registers.read(operand, operand_kind, wider=True)])
    if name == "setp":
        return compile_setp(instruction, registers)
    if name == "mov" and any(isinstance(operand, tuple) for operand in instruction.operands):
        return _compile_packing(instruction, registers)
    if name in ("div", "rem") and modifiers[-1][0] in "su":
        return integers.compile_division(instruction, registers)
    if name not in INSTRUCTIONS:
        return None
    function, kinds = INSTRUCTIONS[name](instruction, modifiers)
    result, *operands = instruction.operands
    if len(operands) != len(kinds) - 1:
        raise Unsupported(f"{instruction}: the number of operands does not match")
    sources = [registers.read(operand, kind) for operand, kind in zip(operands, kinds[1:], strict=True)]
    return _write_result(registers.write(result, kinds[0]), function, sources)


def _write_result(target, function, sources):
    if len(sources) == 1:
        (a,) = sources
        return lambda group: np.copyto(target, function(a), where=group.mask)
    if len(sources) == 2:
        a, b = sources
        return lambda group: np.copyto(target, function(a, b), where=group.mask)
    return lambda group: np.copyto(target, function(*sources), where=group.mask)


def _sum(function):
    """add, sub, mul: integers wrap around; floats must state their rounding, else the compiler may fuse them."""

    def form(instruction, modifiers):
        *how, kind = modifiers
        if kind[0] == "f":
            if not how:
                raise Fault(
                    f"{instruction}: without .rn the compiler may fuse it with another, which changes the rounding"
                )
            require_form(instruction, how, [("rn",)])
        else:
            require_form(instruction, how, [()])
        return function, [kind] * 3

    return form


def _mul(instruction, modifiers):
    return (_sum(operator.mul) if modifiers[-1][0] == "f" else integers.product)(instruction, modifiers)


def _div(instruction, modifiers):
    require_form(instruction, modifiers, [("rn", "f32"), ("rn", "f64")])
    return np.divide, [modifiers[-1]] * 3


def _rcp(instruction, modifiers):
    require_form(instruction, modifiers, [("rn", "f32"), ("rn", "f64")])
    return np.reciprocal, [modifiers[-1]] * 2


def _sqrt(instruction, modifiers):
    require_form(instruction, modifiers, [("rn", "f32"), ("rn", "f64")])
    return np.sqrt, [modifiers[-1]] * 2


def _fma(instruction, modifiers):
    """Exact: the product of two float32 is exact in float64; the sum is rounded to odd in float64, then to float32."""
    require_form(instruction, modifiers, [("rn", "f32")])

    def fused(a, b, c):
        product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
        total = product + c
        c_rounded = total - product
        error = (product - (total - c_rounded)) + (c - c_rounded)
        even = total.view(np.uint64) % 2 == 0
        odd_neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        return np.where((error != 0) & even & np.isfinite(total), odd_neighbour, total).astype(np.float32)

    return fused, ["f32"] * 4


def _extreme(of_integers, of_floats, of_signs):
    """min and max: if one operand is a NaN, the result is the other one; -0 < +0."""

    def form(instruction, modifiers):
        require_form(instruction, modifiers[:-1], [()])
        kind = modifiers[-1]
        if kind[0] != "f":
            return of_integers, [kind] * 3
        words = dtype_of(f"b{kind[1:]}")

        def extreme(a, b):
            signs = of_signs(a.view(words), b.view(words)).view(dtype_of(kind))
            return np.where(a == b, signs, of_floats(a, b))

        return extreme, [kind] * 3

    return form


def _plain(function, count, first="busf"):
    """One function for all types whose name starts with a letter in `first`."""

    def form(instruction, modifiers):
        require_form(instruction, modifiers[:-1], [()])
        if modifiers[-1][0] not in first:
            raise Unsupported(f"{instruction}: this type is not supported")
        return function, [modifiers[-1]] * (count + 1)

    return form


def _selp(instruction, modifiers):
    require_form(instruction, modifiers[:-1], [()])
    return lambda a, b, p: np.where(p, a, b), [modifiers[-1]] * 3 + ["pred"]


def _cvta(instruction, modifiers):
    """cvta: a generic address equals the global address, except in one window for each other space."""
    to, space = modifiers[0] == "to", modifiers[-2]
    if modifiers[-1] != "u64" or space not in WINDOWS or len(modifiers) != 2 + to:
        raise Unsupported(f"{instruction}: this form is not supported")
    window = np.uint64(WINDOWS[space])
    return lambda a: a - window if to else a + window, ["u64"] * 2


# The windows of the memory spaces among generic addresses, 32 bits each.
WINDOWS = {"global": 0, "shared": 0x7C00 << 32, "local": 0x7D00 << 32, "param": 0x7E00 << 32}

INSTRUCTIONS = {
    "add": _sum(operator.add),
    "sub": _sum(operator.sub),
    "mul": _mul,
    "mad": integers.mad,
    "fma": _fma,
    "div": _div,
    "rcp": _rcp,
    "sqrt": _sqrt,
    "min": _extreme(np.minimum, np.fmin, np.bitwise_or),
    "max": _extreme(np.maximum, np.fmax, np.bitwise_and),
    "neg": _plain(operator.neg, 1, "sf"),
    "abs": _plain(abs, 1, "sf"),
    "and": _plain(operator.and_, 2, "bp"),
    "or": _plain(operator.or_, 2, "bp"),
    "xor": _plain(operator.xor, 2, "bp"),
    "not": _plain(np.invert, 1, "bp"),
    "shl": integers.shift(np.left_shift),
    "shr": integers.shift(np.right_shift),
    "selp": _selp,
    "mov": _plain(np.asarray, 1, "busfp"),
    "cvta": _cvta,
    **bits.BIT_INSTRUCTIONS,
}


def _compile_packing(instruction, registers):
    """mov between a register and its parts, the lowest first."""
    require_form(instruction, instruction.parts[1:], [("b32",), ("b64",)])
    whole = instruction.parts[1]
    target, source = instruction.operands
    parts = target if isinstance(target, tuple) else source
    part = f"b{int(whole[1:]) // len(parts)}"
    if isinstance(target, tuple):
        number = registers.read(source, whole)
        number = number if number.ndim else np.full(registers.threads, number)
        pieces = number.view(dtype_of(part)).reshape(-1, len(parts))
        targets = [registers.write(register, part) for register in target]
    else:
        pieces = [registers.read(register, part) for register in source]
        target_parts = registers.write(target, whole).view(dtype_of(part)).reshape(-1, len(parts))

    def unpack(group):
        # Copied before the first write: a target may also be the source.
        for array, piece in zip(targets, pieces.T.copy(), strict=True):
            np.copyto(array, piece, where=group.mask)

    def pack(group):
        for column, piece in zip(target_parts.T, [np.array(piece) for piece in pieces], strict=True):
            np.copyto(column, piece, where=group.mask)

    return unpack if isinstance(target, tuple) else pack
