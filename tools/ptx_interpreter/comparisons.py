"""setp: predicates from comparisons, combined with another predicate."""

import operator

import numpy as np

from .faults import Unsupported

COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def _comparison(instruction, name, floats):
    """With a NaN, comparisons of floats that end in u are true, all others false."""
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
                return lambda a, b: ~COMPARISONS[opposite](a, b)
    else:
        name = UNSIGNED.get(name, name)
    if name not in COMPARISONS:
        raise Unsupported(f"{instruction}: this comparison is not supported")
    return COMPARISONS[name]


def compile_setp(instruction, registers):
    name, *combine, kind = instruction.parts[1:]
    results, a, b, *third = instruction.operands
    compare = _comparison(instruction, name, kind[0] == "f")
    if len(combine) != len(third) or not set(combine) <= {"and", "or", "xor"}:
        raise Unsupported(f"{instruction}: this form is not supported")
    first = registers.read(a, kind), registers.read(b, kind)
    both = results if isinstance(results, tuple) else (results, "_")
    holds, fails = (registers.write(result, "pred") for result in both)
    if not third:
        if both[1] == "_":
            return lambda group: np.copyto(holds, compare(*first), where=group.mask)
        other, join = np.bool_(True), operator.and_
    else:
        join = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[combine[0]]
        other = registers.read(third[0].removeprefix("!"), "pred")
    negated = bool(third) and third[0].startswith("!")

    def run(group):
        condition = compare(*first)
        with_it = ~other if negated else other
        answers = join(condition, with_it), join(~condition, with_it)
        np.copyto(holds, answers[0], where=group.mask)
        np.copyto(fails, answers[1], where=group.mask)

    return run
