"""Instructions that threads run together: barriers, and shuffles within a warp."""

import numpy as np

from .faults import Fault, Unsupported
from .parser import Pair
from .synchronization import ALL_LANES


def compile_collective(instruction, machine, pc):
    """A function that runs a barrier or a shuffle, or None for other instructions."""
    registers, sync = machine.registers, machine.sync
    match instruction.opcode.replace(".cta.", ".", 1).split("."):
        case ["bar", "sync"] | ["barrier", "sync"] | ["barrier", "sync", "aligned"]:
            if instruction.operands != ("0",):
                raise Unsupported(f"{instruction}: only barrier 0, of all threads, is supported")
            return lambda group: sync.at_block(group.lanes, pc)
        case ["barrier", "cluster", "arrive", *how] if set(how) <= {"release", "aligned"}:
            return _converged(how, sync, pc, sync.arrive_at_cluster)
        case ["barrier", "cluster", "arrive", "relaxed", *how] if set(how) <= {"aligned"}:

            def arrive(lanes, pc):
                sync.defer_accesses(lanes, machine.trackers())
                sync.arrive_at_cluster(lanes, pc)

            return _converged(how, sync, pc, arrive)
        case ["barrier", "cluster", "wait", *how] if set(how) <= {"acquire", "aligned"}:
            return _converged(how, sync, pc, sync.wait_at_cluster)
        case ["bar", "warp", "sync"]:
            return _compile_warp_barrier(instruction, registers, sync, pc)
        case ["shfl", "sync", mode, "b32"] if mode in SHUFFLE_SOURCES:
            return _compile_shuffle(instruction, mode, registers, sync, pc)
        case ["fence" | "membar", *_]:
            # Only barriers order the accesses of different threads here, so a fence does nothing.
            return lambda group: None
    return None


def _converged(how, sync, pc, action):
    """The action; with .aligned it requires a converged warp, which at a cluster's barrier the program must ensure."""

    def run(group):
        sync.require_converged(group.lanes, pc)
        return sync.meet(group, pc, ALL_LANES, lambda lanes: action(lanes, pc))

    return run if "aligned" in how else lambda group: action(group.lanes, pc)


def _compile_warp_barrier(instruction, registers, sync, pc):
    members = registers.read(instruction.operands[0], "u32").astype(np.int64)

    def run(group):
        member_masks = members[group.lanes] if members.ndim else members
        if not np.all(member_masks == ALL_LANES):
            raise Unsupported(f"{instruction}: a barrier of part of a warp is not supported")
        return sync.meet(group, pc, ALL_LANES, lambda lanes: sync.meet_all(lanes, pc))

    return run


# From the lane, the operand b, and the bounds: (source lane, whether it is within the bounds).
SHUFFLE_SOURCES = {
    "up": lambda lane, b, low, high, mask: (lane - b, lane - b >= high),
    "down": lambda lane, b, low, high, mask: (lane + b, lane + b <= high),
    "bfly": lambda lane, b, low, high, mask: (lane ^ b, (lane ^ b) <= high),
    "idx": lambda lane, b, low, high, mask: (low | b & ~mask, (low | b & ~mask) <= high),
}


def _compile_shuffle(instruction, mode, registers, sync, pc):
    result, *operands = instruction.operands
    value, within = result if isinstance(result, Pair) else (result, "_")
    target, in_bounds = registers.write(value, "b32"), registers.write(within, "pred")
    a, b, c, members = (registers.read(operand, "b32") for operand in operands)

    def operand_of(operand, lanes):
        return operand[lanes].astype(np.int64) if operand.ndim else np.int64(operand)

    def exchange(lanes):
        lane, clamp = lanes & 31, operand_of(c, lanes)
        mask, limit = clamp >> 8 & 31, clamp & 31
        low, high = lane & mask, lane & mask | limit & ~mask
        source, inside = SHUFFLE_SOURCES[mode](lane, operand_of(b, lanes) & 31, low, high, mask)
        source = np.where(inside, source, lane) + (lanes & ~31)
        present = np.zeros(target.size, bool)
        present[lanes] = True
        if not present[source].all():
            first = np.argmin(present[source])
            reader, absent = sync.clock.name(lanes[first]), sync.clock.name(source[first])
            raise Fault(f"{instruction}: {reader}: reads from {absent}, which does not take part")
        target[lanes] = a[source] if a.ndim else a
        in_bounds[lanes] = inside

    return lambda group: sync.meet(group, pc, operand_of(members, group.lanes), exchange)
