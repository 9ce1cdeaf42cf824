"""cvt: conversions between types. Saturation only where PTX always saturates."""

import numpy as np

from .faults import Unsupported
from .registers import dtype_of

TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def conversion(instruction):
    """(result type, operand type, function from operand arrays to result arrays)."""
    *modifiers, result_kind, operand_kind = instruction.parts[1:]
    rounding = modifiers[0] if modifiers else None
    if len(modifiers) > 1:
        raise Unsupported(f"{instruction}: only one rounding modifier is supported")
    if operand_kind == "bf16" and result_kind == "f32" and rounding is None:
        return result_kind, "b16", lambda a: (a.astype(np.uint32) << np.uint32(16)).view(np.float32)
    target, source = dtype_of(result_kind), dtype_of(operand_kind)
    if "f" not in (target.kind, source.kind):
        if rounding is not None:
            raise Unsupported(f"{instruction}: integers are not rounded")
        return result_kind, operand_kind, lambda a: a.astype(target)
    if source.kind == "f" and target.kind != "f":
        if rounding not in TO_INTEGRAL:
            raise Unsupported(f"{instruction}: this rounding is not supported")
        return result_kind, operand_kind, _to_integers(TO_INTEGRAL[rounding], target, source)
    if source == target and rounding in TO_INTEGRAL:
        return result_kind, operand_kind, TO_INTEGRAL[rounding]
    exact = source.kind == "f" and source.itemsize <= target.itemsize
    if rounding != (None if exact else "rn"):
        raise Unsupported(f"{instruction}: this rounding is not supported")
    return result_kind, operand_kind, lambda a: a.astype(target)


def _to_integers(rounded, target, source):
    """Out-of-range floats become the nearest limit; NaN becomes 0 or, with 64 bits on either side, the highest bit."""
    limits = np.iinfo(target)
    below, above = np.float64(limits.min), np.float64(limits.max)
    if target.itemsize < 8:
        below, above = below - 1, above + 1
    wide = 8 in (target.itemsize, source.itemsize)
    highest = limits.min if target.kind == "i" else 1 << 8 * target.itemsize - 1
    nan_result = target.type(highest if wide else 0)

    def convert(a):
        value = rounded(a.astype(np.float64))
        inside = (value > below) & (value < above)
        low, high = target.type(limits.min), target.type(limits.max)
        integers = np.where(inside, value, 0.0).astype(target)
        return np.where(inside, integers, np.where(value <= below, low, np.where(value >= above, high, nan_result)))

    return convert
