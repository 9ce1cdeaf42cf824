"""What threads do together: barriers, and shuffles within a warp. How they wait for each other is waiting.py's."""

import numpy as np

from .faults import Fault, Unsupported
from .parse import Pair
from .waiting import EVERYONE


def compile_together(instruction, machine, at):
    """A function for a barrier or a shuffle, or None for an instruction of another sort."""
    registers, waiting = machine.registers, machine.waiting
    match instruction.opcode.replace(".cta.", ".", 1).split("."):
        case ["bar", "sync"] | ["barrier", "sync"] | ["barrier", "sync", "aligned"]:
            if instruction.operands != ("0",):
                raise Unsupported(f"{instruction}: only barrier 0, of all threads, is known")
            return lambda group: waiting.at_block(group.lanes, at)
        case ["barrier", "cluster", "arrive", *how] if set(how) <= {"release", "aligned"}:
            return _met(how, waiting, at, waiting.arrive_at_cluster)
        case ["barrier", "cluster", "arrive", "relaxed", *how] if set(how) <= {"aligned"}:

            def arrive(lanes, at):
                waiting.hold_back(lanes, machine.trackers())
                waiting.arrive_at_cluster(lanes, at)

            return _met(how, waiting, at, arrive)
        case ["barrier", "cluster", "wait", *how] if set(how) <= {"acquire", "aligned"}:
            return _met(how, waiting, at, waiting.wait_at_cluster)
        case ["bar", "warp", "sync"]:
            return _compile_warp_barrier(instruction, registers, waiting, at)
        case ["shfl", "sync", mode, "b32"] if mode in SOURCES:
            return _compile_shuffle(instruction, mode, registers, waiting, at)
        case ["fence" | "membar", *_]:
            # Accesses of different threads are held to be ordered by barriers alone.
            return lambda group: None
    return None


def _met(how, waiting, at, act):
    """The compiler sees to it that a warp is together at bar.sync, but at a cluster's barrier the program has to."""

    def met(group):
        waiting.must_be_together(group.lanes, at)
        return waiting.meet(group, at, EVERYONE, lambda lanes: act(lanes, at))

    return met if "aligned" in how else lambda group: act(group.lanes, at)


def _compile_warp_barrier(instruction, registers, waiting, at):
    members = registers.read(instruction.operands[0], "u32").astype(np.int64)

    def run(group):
        given = members[group.lanes] if members.ndim else members
        if not np.all(given == EVERYONE):
            raise Unsupported(f"{instruction}: a barrier of a part of a warp is not known")
        return waiting.meet(group, at, EVERYONE, lambda lanes: waiting.meet_all(lanes, at))

    return run


# From a lane, the operand b, and the bounds: the lane to read from, and whether it is within the bounds.
SOURCES = {
    "up": lambda lane, b, low, high, mask: (lane - b, lane - b >= high),
    "down": lambda lane, b, low, high, mask: (lane + b, lane + b <= high),
    "bfly": lambda lane, b, low, high, mask: (lane ^ b, (lane ^ b) <= high),
    "idx": lambda lane, b, low, high, mask: (low | b & ~mask, (low | b & ~mask) <= high),
}


def _compile_shuffle(instruction, mode, registers, waiting, at):
    result, *operands = instruction.operands
    value, within = result if isinstance(result, Pair) else (result, "_")
    target, found = registers.write(value, "b32"), registers.write(within, "pred")
    a, b, c, members = (registers.read(each, "b32") for each in operands)

    def of(operand, lanes):
        return operand[lanes].astype(np.int64) if operand.ndim else np.int64(operand)

    def exchange(lanes):
        lane, clamp = lanes & 31, of(c, lanes)
        mask, most = clamp >> 8 & 31, clamp & 31
        low, high = lane & mask, lane & mask | most & ~mask
        source, inside = SOURCES[mode](lane, of(b, lanes) & 31, low, high, mask)
        source = np.where(inside, source, lane) + (lanes & ~31)
        present = np.zeros(target.size, bool)
        present[lanes] = True
        if not present[source].all():
            which = np.argmin(present[source])
            who = f"{waiting.clock.name(lanes[which])}: reads of {waiting.clock.name(source[which])}"
            raise Fault(f"{instruction}: {who}, which takes no part")
        target[lanes] = a[source] if a.ndim else a
        found[lanes] = inside

    return lambda group: waiting.meet(group, at, of(members, group.lanes), exchange)
