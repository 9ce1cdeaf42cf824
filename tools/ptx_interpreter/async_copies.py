"""cp.async: copies to shared memory that end when the thread that began them waits for them, and no earlier."""

import re

import numpy as np

from .access import Access, addresses_of
from .faults import Unsupported


class Copies:
    """The copies under way: each of a lane, of its so-manieth group."""

    def __init__(self, lanes):
        self.group = np.zeros(lanes, np.int64)
        self.under_way = []

    def reset(self):
        self.group[:] = 0
        self.under_way = []

    def begin(self, at, lanes):
        self.under_way.append((at, lanes, self.group[lanes]))

    def end(self, lanes, but, tracker, clock):
        """All of these lanes' committed groups but the last few."""
        until = np.full(self.group.size, -1)
        until[lanes] = self.group[lanes] - but
        left = []
        for at, of, group in self.under_way:
            done = group < until[of]
            if done.any():
                tracker.end_copy(at[done], of[done], clock)
                at, of, group = at[~done], of[~done], group[~done]
            if at.size:
                left.append((at, of, group))
        self.under_way = left


def compile_copy(instruction, registers, spaces):
    """A function for cp.async and what waits for it, or None for an instruction of another sort."""
    name, *modifiers = instruction.parts
    if name != "cp":
        return None
    copies, shared, clock = spaces.copies, spaces.regions["shared"], spaces.clock
    match modifiers:
        case ["async", "commit_group"]:

            def commit(group):
                copies.group[group.lanes] += 1

            return commit
        case ["async", "wait_all"]:

            def wait_all(group):
                copies.group[group.lanes] += 1
                copies.end(group.lanes, 0, shared.tracker, clock)

            return wait_all
        case ["async", "wait_group"]:
            but = registers.read(instruction.operands[0], "u32").astype(np.int64)
            return lambda group: copies.end(group.lanes, but, shared.tracker, clock)
        case ["async", "ca" | "cg", "shared" | "shared::cta", "global", *hints] if all(
            re.fullmatch(r"L2::\d+B", each) for each in hints
        ):
            return _compile_begin(instruction, registers, spaces)
    raise Unsupported(f"{instruction}: this form is not known")


def _compile_begin(instruction, registers, spaces):
    to, source, size, *given = instruction.operands
    size = int(size, 0)
    if size not in ((16,) if instruction.parts[2] == "cg" else (4, 8, 16)) or len(given) > 1:
        raise Unsupported(f"{instruction}: this form is not known")
    targets, sources = addresses_of(to, registers), addresses_of(source, registers)
    into = Access(instruction, "shared", size, spaces)
    into.kind = "cp.async to shared"
    # With fewer bytes than are written the rest becomes zeros; where the source ends is then known byte by byte.
    taken = registers.read(given[0], "u32") if given else np.uint32(size)
    reads = [Access(instruction, "global", each, spaces) for each in range(size + 1)]

    def begin(group):
        lanes = group.lanes
        ((region, _, offsets),) = into.places(lanes, targets(lanes))
        spaces.copies.begin(*into.track("begin_copy", region, lanes, offsets))
        bytes_to = offsets[:, None] + np.arange(size)
        region.bytes[bytes_to] = 0
        counts = np.broadcast_to(taken[lanes] if taken.ndim else taken, lanes.shape)
        from_where = sources(lanes)
        into.refuse(counts > size, lanes, from_where, "more bytes taken than written")
        into.refuse(from_where & np.uint64(size - 1) != 0, lanes, from_where, "the source is misaligned")
        for count in np.unique(counts[counts > 0]):
            those = counts == count
            access, part = reads[count], np.arange(count)
            for buffer, reading, begins in access.places_in("global", lanes[those], from_where[those]):
                if buffer.tracker is not None:
                    access.track("read", buffer, reading, begins)
                rows = bytes_to[np.searchsorted(lanes, reading), :count]
                region.bytes[rows] = buffer.bytes[begins[:, None] + part]

    return begin
