"""setp: predicates from comparisons, combined with another predicate."""

import operator

import numpy as np

from .faults import Unsupported

COMPARISON_FUNCTIONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _comparison(instruction, name, floats):
    """If an operand is NaN, comparisons of floats whose names end in u are true, and all others are false."""
    if floats:
        if name in ("num", "nan"):
            return lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan")
        if name == "ne":
            return lambda a, b: (a < b) | (a > b)
        if name == "equ":
            return lambda a, b: ~((a < b) | (a > b))
        if name.endswith("u"):
            opposite = {"neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}.get(name)
            if opposite:
                return lambda a, b: ~COMPARISON_FUNCTIONS[opposite](a, b)
    else:
        name = UNSIGNED.get(name, name)
    if name not in COMPARISON_FUNCTIONS:
        raise Unsupported(f"{instruction}: this comparison is not supported")
    return COMPARISON_FUNCTIONS[name]


def compile_setp(instruction, registers):
    name, *combine, kind = instruction.parts[1:]
    results, a, b, *third = instruction.operands
    compare = _comparison(instruction, name, kind[0] == "f")
    if len(combine) != len(third) or not set(combine) <= {"and", "or", "xor"}:
        raise Unsupported(f"{instruction}: this form is not supported")
    values = registers.read(a, kind), registers.read(b, kind)
    targets = results if isinstance(results, tuple) else (results, "_")
    holds, fails = (registers.write(result, "pred") for result in targets)
    if not third:
        if targets[1] == "_":
            return lambda group: np.copyto(holds, compare(*values), where=group.mask)
        other, join = np.bool_(True), operator.and_
    else:
        join = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[combine[0]]
        other = registers.read(third[0].removeprefix("!"), "pred")
    negated = bool(third) and third[0].startswith("!")

    def run(group):
        condition = compare(*values)
        third_predicate = ~other if negated else other
        both_results = join(condition, third_predicate), join(~condition, third_predicate)
        np.copyto(holds, both_results[0], where=group.mask)
        np.copyto(fails, both_results[1], where=group.mask)

    return run
