"""Branches, exits, and guarded instructions."""

import numpy as np

from .faults import Fault
from .synchronization import STOPPED


def compile_control_flow(instruction, machine):
    """A function that runs a branch or an exit, or None for other instructions."""
    kernel = machine.kernel
    match instruction.parts:
        case ["bra"] | ["bra", "uni"]:
            target = kernel.labels[instruction.operands[0]]
            return lambda group: target
        case ["brx", "idx"] | ["brx", "idx", "uni"]:
            index, table = instruction.operands
            targets = np.array([kernel.labels[label] for label in kernel.targets[table]])
            index = machine.registers.read(index, "u32")
            return lambda group: diverge(machine, group, targets[index[group.lanes]])
        case ["ret"] | ["exit"]:
            return lambda group: machine.sync.exit(group.lanes)
    return None


def diverge(machine, group, targets):
    """Split a group whose threads go on at different instructions."""
    for target in np.unique(targets):
        lanes = group.lanes[targets == target]
        machine.sync.diverge(lanes, group.lanes[targets != target])
        machine.groups.append(machine.group(lanes, int(target), group.turn))
    return STOPPED


def guarded_branch(instruction, step, machine, pc):
    """Threads whose guard holds take the branch, the others go on to the next instruction."""
    holds = _guard(instruction, machine)

    def run(group):
        chosen = holds(group.lanes)
        count = np.count_nonzero(chosen)
        if count == 0:
            return None
        if count == chosen.size:
            return step(group)
        others = machine.group(group.lanes[~chosen], pc + 1, group.turn)
        machine.groups.append(others)
        taking = machine.group(group.lanes[chosen], pc + 1, group.turn)
        if instruction.opcode not in ("ret", "exit"):
            machine.sync.diverge(taking.lanes, others.lanes)
        if instruction.opcode == "bra.uni" and (diverged := np.intersect1d(taking.lanes >> 5, others.lanes >> 5)).size:
            raise Fault(f"{instruction}: {machine.clock.name(32 * diverged[0])}: its warp diverges at a uniform branch")
        following = step(taking)
        if following != STOPPED:
            taking.pc = pc + 1 if following is None else following
            machine.groups.append(taking)
        return STOPPED

    return run


def guarded(instruction, step, machine):
    """An instruction that is run by the threads whose guard holds."""
    holds = _guard(instruction, machine)

    def run(group):
        chosen = holds(group.lanes)
        if chosen.all():
            step(group)
        elif chosen.any():
            step(machine.group(group.lanes[chosen], group.pc, group.turn))

    return run


def _guard(instruction, machine):
    predicate = machine.registers.read(instruction.guard.removeprefix("!"), "pred")
    if instruction.guard.startswith("!"):
        return lambda lanes: ~predicate[lanes]
    return lambda lanes: predicate[lanes]
