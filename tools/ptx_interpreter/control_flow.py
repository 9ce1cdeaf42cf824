"""Branches, ends, and instructions that only some threads of a group execute."""

import numpy as np

from .faults import Fault
from .waiting import GONE


def compile_flow(instruction, machine):
    """A function for what changes the course of threads, or None for an instruction of another sort."""
    kernel = machine.kernel
    match instruction.parts:
        case ["bra"] | ["bra", "uni"]:
            target = kernel.labels[instruction.operands[0]]
            return lambda group: target
        case ["brx", "idx"] | ["brx", "idx", "uni"]:
            index, table = instruction.operands
            targets = np.array([kernel.labels[each] for each in kernel.targets[table]])
            index = machine.registers.read(index, "u32")
            return lambda group: part(machine, group, targets[index[group.lanes]])
        case ["ret"] | ["exit"]:
            return lambda group: machine.waiting.exit(group.lanes)
    return None


def part(machine, group, targets):
    """Threads go on at different places."""
    for target in np.unique(targets):
        lanes = group.lanes[targets == target]
        machine.waiting.part(lanes, group.lanes[targets != target])
        machine.groups.append(machine.group(lanes, int(target), group.home))
    return GONE


def guarded_flow(instruction, step, machine, at):
    """The threads for which the guard holds go one way, the others on to the next instruction."""
    holds = _guard(instruction, machine)

    def run(group):
        chosen = holds(group.lanes)
        count = np.count_nonzero(chosen)
        if count == 0:
            return None
        if count == chosen.size:
            return step(group)
        others = machine.group(group.lanes[~chosen], at + 1, group.home)
        machine.groups.append(others)
        some = machine.group(group.lanes[chosen], at + 1, group.home)
        if instruction.opcode not in ("ret", "exit"):
            machine.waiting.part(some.lanes, others.lanes)
        if instruction.opcode == "bra.uni" and (parted := np.intersect1d(some.lanes >> 5, others.lanes >> 5)).size:
            raise Fault(f"{instruction}: {machine.clock.name(32 * parted[0])}: its warp parts here, and must not")
        after = step(some)
        if after != GONE:
            some.at = at + 1 if after is None else after
            machine.groups.append(some)
        return GONE

    return run


def guarded(instruction, step, machine):
    """An instruction that the threads for which the guard does not hold leave out."""
    holds = _guard(instruction, machine)

    def run(group):
        chosen = holds(group.lanes)
        if chosen.all():
            step(group)
        elif chosen.any():
            step(machine.group(group.lanes[chosen], group.at, group.home))

    return run


def _guard(instruction, machine):
    predicate = machine.registers.read(instruction.guard.removeprefix("!"), "pred")
    if instruction.guard.startswith("!"):
        return lambda lanes: ~predicate[lanes]
    return lambda lanes: predicate[lanes]
